"""A benchmark's numbers from its answers, and the differences between two models that answered it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from megarl.evaluation.answers import read_answers, read_settings
from megarl.evaluation.estimators import majority_at_k, mean_at_k, pass_at_k, powers_of_two
from megarl.evaluation.intervals import Estimate, estimate, estimate_difference
from megarl.evaluation.support import Support, compare_support
from megarl.telemetry.metrics import Metrics, declared
from megarl.telemetry.names import evaluation_name

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A complete file as arrays; rows are problems, columns samples."""

    name: str
    settings: Mapping[str, Any]
    problems: Sequence[int]
    truths: Sequence[str]
    correct_PN: NDArray[np.bool_]
    answers_PN: Sequence[Sequence[str | None]]
    tokens_PN: NDArray[np.int64]
    truncated_PN: NDArray[np.bool_]
    logp_PN: Floats
    """Sum over the response's tokens."""

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """ValueError where the file is damaged."""
        settings, table = read_settings(path), read_answers(path)
        problems = sorted(set(table["problem"].to_pylist()))
        shape = (len(problems), len(table) // len(problems))
        tokens_PN = _array(table, "tokens", shape).astype(np.int64)
        texts = table["answer"].to_pylist()
        mean_logp_PN = np.array([value or 0.0 for value in table["mean_logp"].to_pylist()]).reshape(shape)
        return cls(
            name=path.stem,
            settings=settings,
            problems=problems,
            truths=table["truth"].to_pylist()[:: shape[1]],
            correct_PN=_array(table, "correct", shape),
            answers_PN=[texts[start : start + shape[1]] for start in range(0, len(texts), shape[1])],
            tokens_PN=tokens_PN,
            truncated_PN=_array(table, "truncated", shape),
            logp_PN=mean_logp_PN * tokens_PN,
        )

    @property
    def samples(self) -> int:
        return int(self.correct_PN.shape[1])

    @property
    def votes(self) -> bool:
        """Whether its judge tells which answers are equal."""
        return bool(self.settings["votes"])

    def measures(self) -> tuple[list[str], Floats]:
        """(names, [problems, measures]): mean@n, pass@k for every k, maj@k for powers of two; all between 0 and 1."""
        n, ks = self.samples, powers_of_two(self.samples)
        names = [f"mean@{n}", *(f"pass@{k}" for k in range(1, n + 1))]
        columns = [mean_at_k(self.correct_PN)[:, None], pass_at_k(self.correct_PN)]
        if self.votes:
            names += [f"maj@{k}" for k in ks]
            rows = zip(self.answers_PN, self.correct_PN.tolist(), strict=True)
            columns.append(np.array([majority_at_k(answers, correct, ks) for answers, correct in rows]))
        return names, np.hstack(columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a benchmark says of a model."""

    name: str
    problems: int
    samples: int
    measures: Mapping[str, Estimate]
    """mean@n, pass@k and maj@k by name, with intervals over problems."""
    length_mean: float
    truncated: float
    entropy: float
    """Nats per token; NaN where no token was sampled."""

    def metrics(self) -> Metrics:
        """For metrics.jsonl: of pass@k those for powers of two."""
        ks = powers_of_two(self.samples)
        shown = [name for name in self.measures if not name.startswith("pass@") or int(name[5:]) in ks]
        values = {name: self.measures[name].value for name in shown}
        values |= {"length_mean": self.length_mean, "truncated": self.truncated, "entropy": self.entropy}
        return declared({evaluation_name(self.name, name): value for name, value in values.items()})

    def as_json(self) -> dict[str, Any]:
        """NaN is null."""
        others = {"length_mean": self.length_mean, "truncated": self.truncated, "entropy": self.entropy}
        return {
            "problems": self.problems,
            "samples": self.samples,
            **{name: _estimate_json(one) for name, one in self.measures.items()},
            **{name: None if math.isnan(value) else value for name, value in others.items()},
        }


def summarise(answers: Answers) -> Summary:
    """The numbers of one benchmark."""
    names, values_PM = answers.measures()
    tokens = int(answers.tokens_PN.sum())
    return Summary(
        name=answers.name,
        problems=len(answers.problems),
        samples=answers.samples,
        measures=dict(zip(names, estimate(values_PM), strict=True)),
        length_mean=float(answers.tokens_PN.mean()),
        truncated=float(answers.truncated_PN.mean()),
        entropy=-float(answers.logp_PN.sum()) / tokens if tokens else math.nan,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A model against its base, on the same problems and draws."""

    name: str
    samples: int
    differences: Mapping[str, Estimate]
    """By measure, the model's less the base's, with the interval of paired problems."""
    only_model: int
    """Draws (problem and seed) that the model alone answers correctly."""
    only_base: int
    support: Support

    def as_json(self) -> dict[str, Any]:
        """NaN is null."""
        support = self.support
        shares = {"SRR": support.retention, "NDR": support.discovery, "NSCR": support.net_change}
        return {
            "differences": {name: _estimate_json(one) for name, one in self.differences.items()},
            "draws": {"only_model": self.only_model, "only_base": self.only_base},
            "support": {
                "preserved": list(support.preserved),
                "lost": list(support.lost),
                "gained": list(support.gained),
                "unsolved": list(support.unsolved),
                **{name: None if math.isnan(value) else value for name, value in shares.items()},
            },
        }


def compare(model: Answers, base: Answers) -> Comparison:
    """ValueError, with what differs, where they were not asked the same in the same way."""
    if (model.problems, model.truths) != (base.problems, base.truths):
        raise ValueError(
            f"{model.name}: the base answered {len(base.problems)} problems, this model {len(model.problems)}, and "
            "they are not the same ones"
        )
    names, of_model = model.measures()
    _, of_base = base.measures()
    return Comparison(
        name=model.name,
        samples=model.samples,
        differences=dict(zip(names, estimate_difference(of_model, of_base), strict=True)),
        only_model=int((model.correct_PN & ~base.correct_PN).sum()),
        only_base=int((base.correct_PN & ~model.correct_PN).sum()),
        support=compare_support(model.correct_PN, base.correct_PN, model.problems),
    )


def _array(table: pa.Table, name: str, shape: tuple[int, int]) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy(zero_copy_only=False)).reshape(shape)


def _estimate_json(one: Estimate) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high}
