"""`megarl eval --base`: the answers of another evaluation, which must be to the same problems, asked likewise."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.cli.paths import shown_path
from megarl.config.base import ConfigError
from megarl.evaluation.answers import AnswersFile, find_other_settings, read_settings
from megarl.evaluation.summary import Answers, Comparison, compare

_OF_THE_MODEL = ("model",)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The answers of the model to compare with."""

    directory: Path

    def compare(self, files: Sequence[AnswersFile]) -> list[Comparison]:
        """Of every benchmark; ValueError where the problems are not the same."""
        return [compare(Answers.read(one.path), Answers.read(self.directory / one.path.name)) for one in files]


def find_base(path: Path, files: Sequence[AnswersFile]) -> Base:
    """The evaluation in a directory that `megarl eval` made, or in RUN/eval/step-000012.

    ConfigError, before anything starts, where it lacks one of the benchmarks, or asked it in another way.
    """
    directory = _find(path)
    problems: list[str] = []
    for file in files:
        other = directory / file.path.name
        if not other.is_file():
            problems.append(f"it has no answers to {file.path.stem}, or not all of them")
            continue
        try:
            differing = find_other_settings(read_settings(other), file.settings, but=_OF_THE_MODEL)
        except ValueError as error:
            problems.append(str(error))
            continue
        if differing:
            problems.append(f"{file.path.stem} was asked with {', '.join(differing)}")
    if problems:
        raise ConfigError(
            "\n".join(
                [f"megarl eval --base {path}: the same draws are compared, evaluate the base likewise", *problems]
            ),
            problems,
        )
    return Base(directory=directory)


def _find(path: Path) -> Path:
    given = path.expanduser().resolve()
    for directory in (given / "eval", given):
        if any(directory.glob("*.parquet")):
            return directory
    steps = sorted((given / "eval").glob("step-*"))
    hint = f"; name one of {', '.join(shown_path(step) for step in steps[:6])}" if steps else ""
    raise ConfigError(
        f"megarl eval --base {path}: expected a directory that `megarl eval` made, or RUN/eval/step-000012, with "
        f"answers (*.parquet){hint}"
    )
