"""`megarl eval`: a model's answers to benchmarks, sampled by vLLM engines alone."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from megarl.cli.benchmarks import load_evaluator
from megarl.cli.evaluated_model import EvaluatedModel
from megarl.cli.evaluated_weights import check_stored, engines_alone, serve_stored
from megarl.cli.evaluation_base import find_base
from megarl.cli.inputs import ModelInputs, load_model_inputs, load_text_inputs
from megarl.cli.paths import shown_path
from megarl.cli.resume import Resumed
from megarl.cli.session import Session, run_session
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.controller.evaluating import RESULTS, Ask, Evaluator, answer_settings
from megarl.controller.protocols import Arrived
from megarl.evaluation.answers import AnswersFile, find_other_settings
from megarl.evaluation.summary import Comparison, Summary
from megarl.evaluation.table import comparison_lines, summary_lines
from megarl.records import Rollout, SampleRequest
from megarl.runtime.closing import undisturbed
from megarl.runtime.cluster import check_cluster, ray_cluster
from megarl.runtime.rollout_actors import RayRolloutPool
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.run_lock import RunHeldError, hold_run


@dataclass(frozen=True, kw_only=True)
class _GoesOn(Resumed):
    """An evaluation that was stopped: its answers stay, whatever steps they are named after."""

    def cut_back(self) -> list[str]:
        return []


def run_eval(
    config: RunConfig,
    evaluated: EvaluatedModel,
    *,
    sources: Sequence[Path],
    base: Path | None = None,
    run: Path | None = None,
) -> int:
    """Check everything that can be checked, then ask every benchmark; returns the exit code.

    base: another evaluation to compare with. run: a link that leads to the evaluation's directory, or that directory;
    where it does already, that evaluation goes on.
    """
    goes_on = None if run is None or not run.exists() else _open(run)
    config = _adapted(config, goes_on)
    if evaluated.is_dist:
        check_stored(evaluated)
    model = load_text_inputs(config) if evaluated.is_dist else load_model_inputs(config)
    config = model.pin(config)
    name = str(evaluated.path)
    if goes_on is not None:
        wanted = {benchmark: answer_settings(config, benchmark, model=name) for benchmark in config.eval.benchmarks}
        folder = goes_on.directory.evaluations
        _check_same(goes_on.directory, [AnswersFile(folder, *settings) for settings in wanted.items()])

    async def work(session: Session) -> None:
        session.say(f"model  {shown_path(evaluated.path)}", *model.describe())
        await check_cluster(config)
        evaluator = await _load(session, config, model)
        files = evaluator.files(session.directory.evaluations, model=name)
        _check_same(session.directory, files)
        compared = None if base is None else find_base(base, files)
        complete = all(file.is_complete for file in files)
        if complete:
            session.say("all answers are there; nothing is sampled")
        async with nullcontext(_nobody) if complete else _engines(session, config, evaluated, model) as ask:
            summaries = await evaluator.evaluate(
                session.directory.evaluations, model=name, ask=ask, reporter=session.reporter
            )
        comparisons = compared.compare(files) if compared else []
        _tell(session, summaries, comparisons)

    return run_session(
        config,
        work,
        sources=sources,
        verb="eval",
        steps=1,
        columns=(),
        resumed=goes_on,
        link=None if goes_on else run,
    )


def _adapted(config: RunConfig, goes_on: Resumed | None) -> RunConfig:
    """Nothing is logged by steps; an evaluation that goes on shows the day that it began with, where nobody says
    another."""
    logging = config.logging.model_copy(update={"wandb_project": None, "tensorboard": False})
    data = config.data
    if data.date is None and goes_on is not None:
        data = data.model_copy(update={"date": goes_on.before.data.date})
    return config.model_copy(update={"data": data, "logging": logging})


def _open(run: Path) -> _GoesOn:
    """The evaluation that goes on, which this process drives from now on."""
    try:
        directory = RunDirectory.open(run)
        verb = directory.read_versions()["verb"]
        if verb != "eval":
            raise ConfigError(f"megarl eval --run {run}: it leads to a run of `megarl {verb}`; name another link")
        hold_run(directory.path)
        before = load_config(directory.config_path)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"megarl eval --run {run}: {error}") from error
    except RunHeldError as error:
        raise ConfigError(f"megarl eval --run {run}: {error}; stop it first") from error
    about = (f"goes on  {shown_path(directory.path)}: what is answered there is not asked again",)
    return _GoesOn(directory=directory, checkpoint=None, before=before, about=about)


async def _load(session: Session, config: RunConfig, model: ModelInputs) -> Evaluator:
    with session.reporter.start_up("benchmarks"):
        evaluator = await load_evaluator(config, model, session.console)
    session.say(*(f"asks   {one.name}: {len(one.prompts)} problems" for one in evaluator.benchmarks))
    return evaluator


def _check_same(directory: RunDirectory, files: Sequence[AnswersFile]) -> None:
    """ConfigError where answers are there that another model gave, or that were asked in another way."""
    problems = []
    for file in files:
        found = file.found_settings()
        if found is not None and (differing := find_other_settings(found, file.settings)):
            problems.append(f"{file.path.stem} was asked with {', '.join(differing)}")
    if problems:
        where = shown_path(directory.path)
        raise ConfigError(
            "\n".join([f"{where} has answers to other questions; begin a new evaluation (another --run)", *problems]),
            problems,
        )


@asynccontextmanager
async def _engines(
    session: Session, config: RunConfig, evaluated: EvaluatedModel, model: ModelInputs
) -> AsyncIterator[Ask]:
    """Ask engines that have the weights, while the block runs."""
    alone = engines_alone(config, stored=evaluated.is_dist)
    async with AsyncExitStack() as stack:
        with session.reporter.start_up("ray"):
            cluster = ray_cluster(alone, num_engines=alone.rollout.engines)
            placement = await stack.enter_async_context(cluster)
        stop_token_ids, roster = model.stops.token_ids, session.heart.roster
        pool = RayRolloutPool(alone, session.directory, placement, roster, stop_token_ids=stop_token_ids)
        try:
            async with session.heart.explaining():
                with session.reporter.start_up("vLLM engines"):
                    await pool.setup()
                if not evaluated.is_dist:
                    yield pool.generate
                    return
                async with serve_stored(session, alone, evaluated, pool) as ask:
                    yield ask
        finally:
            await undisturbed(pool.close())


async def _nobody(requests: Sequence[SampleRequest], _: Arrived) -> list[Rollout]:
    raise AssertionError(f"all answers are there, and {len(requests)} are asked for")


def _tell(session: Session, summaries: Sequence[Summary], comparisons: Sequence[Comparison]) -> None:
    path = session.directory.evaluations / RESULTS
    session.say("", *summary_lines(summaries), "")
    if comparisons:
        session.say(*comparison_lines(comparisons), "")
        results = json.loads(path.read_text(encoding="utf-8"))
        results["against_base"] = {one.name: one.as_json() for one in comparisons}
        write_text_atomically(path, json.dumps(results, indent=2, allow_nan=False) + "\n")
