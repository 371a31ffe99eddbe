"""Files of answers for tests."""

from collections.abc import Sequence
from pathlib import Path

from megarl.evaluation.answers import Answer, AnswersFile

SETTINGS = {"model": "m", "benchmark": "sums", "samples": 2, "seed": 0, "votes": True}


def make_answer(problem: int, sample: int, letter: str, *, tokens: int = 4, mean_logp: float | None = -0.5) -> Answer:
    """letter: "x" is right and says 7, "." is wrong and says 8, "-" is wrong, cut off, and says nothing."""
    return Answer(
        problem=problem,
        sample=sample,
        prompt=f"p{problem}",
        truth="7",
        text=f"it is {letter}",
        tokens=tokens,
        truncated=letter == "-",
        correct=letter == "x",
        score=float(letter == "x"),
        failure=None,
        answer={"x": "7", ".": "8", "-": None}[letter],
        mean_logp=mean_logp,
    )


def write_answers(
    directory: Path,
    rows: Sequence[str],
    *,
    name: str = "sums",
    problems: Sequence[int] | None = None,
    **settings: object,
) -> AnswersFile:
    """A complete file: a row of letters per problem."""
    numbers = range(len(rows)) if problems is None else problems
    file = AnswersFile(directory, name, SETTINGS | settings)
    answers = zip(numbers, rows, strict=True)
    file.add([make_answer(number, at, letter) for number, row in answers for at, letter in enumerate(row)])
    file.finish(problems=len(rows))
    return file
