"""An ablation's file as the runs that it asks for: each with its arguments of `megarl train`, and its configuration."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.ablation.directory import AblationPlan, Cell, Setting
from megarl.ablation.settings import Variant, as_override, find_variants
from megarl.config.ablation import OWN_FIELDS, AblationConfig, flatten
from megarl.config.base import ConfigError
from megarl.config.loader import is_fragment, load_config, load_section
from megarl.config.run import RunConfig

_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run as it will be started."""

    cell: Cell
    arguments: tuple[str, ...]
    """What follows `megarl train BASE`: fragments and overrides, in order."""
    config: RunConfig
    """What they make of it, beside where it writes and what weights a shared warm start gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """Everything that is asked for, checked as far as the configurations themselves can be."""

    file: Path
    config: AblationConfig
    base: Path
    shared: tuple[str, ...]
    """Fragments and overrides that all runs have, in order: the file's, then those of the command line."""
    plan: AblationPlan
    runs: tuple[PlannedRun, ...]
    """In the order of the plan's cells."""
    warm: RunConfig | None
    """Of the shared warm start."""
    fragments: tuple[Path, ...]
    """Every fragment of any run, each once."""

    @property
    def first_runs(self) -> tuple[PlannedRun, ...]:
        """One run of each setting: what differs between its seeds is in no file and no layout."""
        first: dict[str, PlannedRun] = {}
        for run in self.runs:
            first.setdefault(run.cell.setting, run)
        return tuple(first.values())


def load_ablation(file: Path, arguments: Sequence[str]) -> Ablation:
    """ABLATION.toml with what follows it on the command line; every run's configuration is loaded.

    arguments: `at_once=2` for a field of the file; `train.steps=10`, or a FRAGMENT.toml, for all runs. ConfigError with
    all problems of all runs, each with the settings that have it.
    """
    own, of_runs = _split(arguments)
    config = load_section(file, own, AblationConfig)
    base = _beside(file, config.base)
    texts = (as_override(path, value) for path, value in flatten(config.overrides).items())
    shared = (*(str(_beside(file, name)) for name in config.fragments), *texts, *of_runs)
    try:
        variants = find_variants(config)
    except ConfigError as error:
        raise _headed(file, error.problems) from error
    if problems := list(_find_lost(of_runs, variants)):
        raise _headed(file, problems)
    runs, problems = _load_runs(file, config, base, shared, variants)
    problems += _find_duplicates(runs)
    warm = load_config(base, (*shared, as_override("name", f"{config.name}-warm"))) if config.warm_start else None
    problems += _find_warm_problems(warm, runs) if warm else ()
    if problems:
        raise _headed(file, problems)
    settings = tuple(
        Setting(
            name=variant.name,
            about=variant.about,
            values=dict(variant.values),
            fragments=tuple(_shown(_beside(file, name)) for name in variant.fragments),
            control=variant.control,
        )
        for variant in variants
    )
    plan = AblationPlan(
        name=config.name, settings=settings, cells=tuple(run.cell for run in runs), control=config.control
    )
    named = (Path(text) for texts in (shared, *(run.arguments for run in runs)) for text in texts if is_fragment(text))
    return Ablation(
        file=file,
        config=config,
        base=base,
        shared=shared,
        plan=plan,
        runs=tuple(runs),
        warm=warm,
        fragments=tuple(dict.fromkeys(named)),
    )


def group_problems(found: Iterable[tuple[str, Sequence[str]]], names: Sequence[str]) -> list[str]:
    """Problems by the settings that have them: each text once, after the names.

    found: (setting, its problems). names: of all settings.
    """
    having: dict[str, list[str]] = {}
    for name, problems in found:
        for text in problems:
            having.setdefault(text, []).append(name)
    return [f"{_describe_names(of, names)}{text}" for text, of in having.items()]


def _describe_names(of: Sequence[str], names: Sequence[str]) -> str:
    if len(of) == len(names):
        return ""
    shown = ", ".join(of[:_MOST_NAMED])
    more = f" and {len(of) - _MOST_NAMED} more" if len(of) > _MOST_NAMED else ""
    return f"{shown}{more}: "


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(of the file's own fields, of all runs). A name that both have is the file's."""
    own: list[str] = []
    of_runs: list[str] = []
    for argument in arguments:
        key = argument.partition("=")[0].strip().partition(".")[0]
        mine = not is_fragment(argument) and (key in AblationConfig.model_fields or key not in RunConfig.model_fields)
        (own if mine else of_runs).append(argument)
    return own, of_runs


def _find_lost(of_runs: Sequence[str], variants: Sequence[Variant]) -> Iterator[str]:
    """Overrides of the command line that no run would have: the ablation, or every setting, says another."""
    for argument in of_runs:
        field = argument.partition("=")[0].strip()
        if is_fragment(argument):
            continue
        if field in OWN_FIELDS:
            yield f"{argument}: {OWN_FIELDS[field]}"
        elif all(field in variant.values for variant in variants):
            yield f"{argument}: every setting sets {field}, so no run would have it; change the file"


def _load_runs(
    file: Path, config: AblationConfig, base: Path, shared: Sequence[str], variants: Sequence[Variant]
) -> tuple[list[PlannedRun], list[str]]:
    """Seed by seed, so that an ablation that is stopped has all settings with the first ones."""
    runs: list[PlannedRun] = []
    found: list[tuple[str, Sequence[str]]] = []
    for seed in config.seeds:
        for variant in variants:
            name = f"{variant.name}-seed{seed}"
            cell = Cell(index=len(runs), name=name, setting=variant.name, seed=seed, run=f"cells/{name}")
            own = (*(str(_beside(file, fragment)) for fragment in variant.fragments), *variant.overrides)
            arguments = (*shared, *own, as_override("train.seed", seed), as_override("name", name))
            try:
                loaded = load_config(base, arguments)
            except ConfigError as error:
                if seed == config.seeds[0]:
                    found.append((variant.name, error.problems))
                continue
            runs.append(PlannedRun(cell=cell, arguments=arguments, config=loaded))
    return runs, group_problems(found, [variant.name for variant in variants])


def _find_duplicates(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Settings of one seed whose configurations are equal but for the name."""
    if not runs:
        return
    first = [run for run in runs if run.cell.seed == runs[0].cell.seed]
    seen: list[tuple[RunConfig, str]] = []
    for run in first:
        bare = run.config.model_copy(update={"name": "same"})
        twin = next((name for other, name in seen if other == bare), None)
        if twin is not None:
            yield f"{run.cell.setting} and {twin} are one configuration; leave one of them out"
        seen.append((bare, run.cell.setting))


def _find_warm_problems(warm: RunConfig, runs: Sequence[PlannedRun]) -> Iterator[str]:
    if warm.sft is None:
        yield "warm_start: the base has no [sft], which says how it is made; add sft.steps and sft.batch_examples"
    others = {run.cell.setting for run in runs if run.config.model.path != warm.model.path}
    if others:
        yield (
            f"warm_start: one warm start is of one model, {warm.model.path}, and {_describe_names(sorted(others), ())}"
            "another model.path; leave warm_start out, or model.path the same"
        )
    begun = {run.cell.setting for run in runs if run.config.train.init_from is not None}
    if begun:
        yield "warm_start: its weights and those of train.init_from cannot both be begun with; leave one of them out"


def _headed(file: Path, problems: Sequence[str]) -> ConfigError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError("\n".join([f"{file}: {count}", *(f"  {text}" for text in problems)]), problems)


def _beside(file: Path, name: str) -> Path:
    """A path that the file names, relative to itself."""
    return _short(file.parent / Path(name).expanduser())


def _short(path: Path) -> Path:
    """Without `..`, and relative to where the person stands where it lies below: as a person would type it."""
    full, here = path.resolve(), Path.cwd()
    return full.relative_to(here) if full.is_relative_to(here) else full


def _shown(path: Path) -> str:
    return str(path)


def replace_files(arguments: Iterable[str], kept: Mapping[Path, Path]) -> tuple[str, ...]:
    """Arguments with the copies of their fragments."""
    return tuple(str(kept[Path(text)]) if is_fragment(text) else text for text in arguments)
