"""Of clipping.md: the paper's claims as differences of H/H0, judged by their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from megarl.ablation.seeds import SeedMean
from results.clipping_prediction import RUN_SCALE, term_verdicts
from results.ran import table
from results.reading import BySeed, Results, difference
from results.words import Verdict, estimate, listed, overall, verdict

CLIPS = ("low0.2", "low0.1", "high0.2", "high0.1", "symmetric")
NONE = "none"
END, WHOLE = "entropy_end", "entropy_mean"
FIRST = 2
"""The step before whose updates the first step's effect is measured."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One of the paper's, as differences of H/H0 that have a sign."""

    letter: str
    text: str
    sign: int
    pairs: tuple[tuple[str, str], ...]
    """(setting, what it is compared with)."""
    clips: tuple[str, ...]
    sides: tuple[str, ...]
    """Whose bounds it is about: what they took from the budget is its first-order term."""


CLAIMS = (
    Claim(
        letter="a",
        text="a smaller `low` raises entropy",
        sign=1,
        pairs=(("low0.2", "low0.2-coin"), ("low0.1", "low0.1-coin"), ("low0.1", "low0.2")),
        clips=("low0.2", "low0.1"),
        sides=("low",),
    ),
    Claim(
        letter="b",
        text="a smaller `high` lowers entropy",
        sign=-1,
        pairs=(("high0.2", "high0.2-coin"), ("high0.1", "high0.1-coin"), ("high0.1", "high0.2")),
        clips=("high0.2", "high0.1"),
        sides=("high",),
    ),
    Claim(
        letter="c",
        text="symmetric clipping lowers entropy",
        sign=-1,
        pairs=(("symmetric", "symmetric-coin"), ("symmetric", NONE)),
        clips=("symmetric",),
        sides=("low", "high"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One difference of H/H0: after the first step, at the end, over the run."""

    setting: str
    other: str
    first: SeedMean | None
    end: SeedMean | None
    whole: SeedMean | None
    signs: tuple[int, int]
    """Seeds whose difference at the end is above 0, and below."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim in one ablation."""

    claim: Claim
    where: str
    differences: tuple[Compared, ...]
    """Of the pairs that were run."""
    terms: tuple[tuple[str, str, str], ...]
    """Of `term_verdicts`."""

    def first_order(self, unit: str) -> str:
        """What the bounds took from the budget, judged: "reproduced (low0.2 +1.11 ± 0.42, 10⁻⁴ nats)"."""
        told = [f"{clip} {value}" for clip, value, _ in self.terms]
        return f"{overall([word for _, _, word in self.terms])} ({listed(told)}, {unit})"

    @property
    def at_end(self) -> list[Verdict]:
        return [verdict(one.end, self.claim.sign) for one in self.differences]

    @property
    def after_first(self) -> list[Verdict]:
        return [verdict(one.first, self.claim.sign) for one in self.differences]


def judge(claim: Claim, found: Results, where: str, *, scale: float = RUN_SCALE) -> Judged:
    """From H/H0, paired by seed. scale: as of `term_verdicts`."""
    rows = [
        Compared(
            setting=setting,
            other=other,
            first=difference(after_first(found, setting), after_first(found, other)),
            end=difference(found.measure(setting, END), found.measure(other, END)),
            whole=difference(found.measure(setting, WHOLE), found.measure(other, WHOLE)),
            signs=_signs(found.measure(setting, END), found.measure(other, END)),
        )
        for setting, other in claim.pairs
        if found.has(setting, other)
    ]
    terms = term_verdicts(found, present(found, claim.clips), claim.sides, claim.sign, scale=scale)
    return Judged(claim=claim, where=where, differences=tuple(rows), terms=tuple(terms))


def after_first(found: Results, setting: str) -> BySeed:
    """H/H0 after the first step's updates."""
    return found.at_step(setting, "actor/entropy_over_start", FIRST)


def answer(claims: Sequence[Judged]) -> str:
    """One claim in all ablations, in a sentence or two each."""
    claim = claims[0].claim
    parts = []
    for one in claims:
        if not one.differences:
            parts.append(f"On {one.where} nothing of it was run.")
            continue
        end, first = overall(one.at_end), overall(one.after_first)
        told = [f"{pair_name(each)} {estimate(each.end)}" for each in one.differences]
        parts.append(
            f"On {one.where} **{end}** at the end ({listed(told)}), and {first} after the first step. The runs' own "
            f"first-order term: {one.first_order('10⁻⁴ nats over the run')}."
        )
    return f"**({claim.letter}) {claim.text}.** {' '.join(parts)}"


def claims_table(judged: Sequence[Sequence[Judged]]) -> str:
    rows = []
    for one in (one for claims in judged for one in claims):
        sign = one.claim.sign
        for each in one.differences:
            cells = [f"{estimate(value)} {verdict(value, sign)}" for value in (each.first, each.end, each.whole)]
            name = f"({one.claim.letter}) {one.where}: {pair_name(each)}"
            with_sign = each.signs[0 if sign > 0 else 1]
            seeds = f"{with_sign} of {each.end.n if each.end else 0}"
            rows.append([name, "+" if sign > 0 else "−", *cells, seeds])
    heads = ["difference of H/H0", "claimed", "after the first step", "at the end", "over the run"]
    return table([*heads, "seeds as claimed at the end"], rows)


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many differences are decided, and which way."""
    return {
        "all": len(verdicts),
        **{name: verdicts.count(name) for name in ("reproduced", "contradicted", "undecided")},
    }


def present(found: Results, settings: Sequence[str]) -> list[str]:
    """Those that have a finished run."""
    return [name for name in settings if found.has(name)]


def _signs(first: BySeed, second: BySeed) -> tuple[int, int]:
    less = [first[seed] - second[seed] for seed in first.keys() & second.keys()]
    return sum(value > 0 for value in less), sum(value < 0 for value in less)


def pair_name(one: Compared) -> str:
    """ "low0.2 less its coin"."""
    return f"{one.setting} less {'its coin' if one.other == f'{one.setting}-coin' else one.other}"
