"""What a variant of a plug point says of itself, and how that is read.

A fact is an abstract property of the plug point's base class (`ClipVariant`, `WeightVariant`, ...). Every variant gives
its answer in its own body: a `ClassVar`, or a property where the answer depends on its fields. A class that leaves one
open is refused where it is defined, and answers are not inherited: a variant made from another one says again what it
is. So the rules over combinations ask for facts and never for names.

Facts of one field (`NotBelow`, `LargestWeight`, `Distance`, `MayChange`) stand at the field.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from megarl.config.base import Config
from megarl.config.fields import section_types, union_tag

RuleName = Literal[
    "clip_low",
    "clip_high",
    "dual",
    "cap",
    "dppo",
    "tis",
    "importance_mask",
    "sequence_rejection",
    "opsm",
    "low_entropy",
    "clip_cov",
    "clip_b",
    "clip_v",
    "erc",
    "kl_cov",
    "matched",
]
"""Rules that act on tokens because a variant is on: those of `rules.Rule`, in lower case."""

_RULE_EFFECTS: dict[RuleName, Literal["clips", "masks", "limits", "adds"]] = {
    "clip_high": "clips",
    "clip_low": "clips",
    "dual": "clips",
    "dppo": "clips",
    "cap": "limits",
    "tis": "limits",
    "importance_mask": "masks",
    "sequence_rejection": "masks",
    "opsm": "masks",
    "low_entropy": "masks",
    "clip_cov": "masks",
    "clip_b": "masks",
    "clip_v": "masks",
    "erc": "masks",
    "kl_cov": "adds",
    "matched": "masks",
}
"""What a rule does to a token: clipping, as actor/pg_clipfrac counts it; setting the token's weight to 0; limiting the
weight; adding a loss."""


def rules_that(effect: Literal["clips", "masks", "limits", "adds"]) -> tuple[RuleName, ...]:
    """The rules with this effect."""
    return tuple(name for name, does in _RULE_EFFECTS.items() if does == effect)


class Variant(Config):
    """Base of the plug points' base classes."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if Variant in cls.__bases__:  # a plug point: it asks, and its variants answer
            return
        open_ = [f"{name} ({doc})" for name, doc in facts_of(cls) if name not in cls.__dict__]
        if open_:
            points = ", ".join(base.__name__ for base in cls.__mro__ if Variant in base.__bases__)
            raise TypeError(
                f"class {cls.__qualname__} is a variant of {points} and does not say of itself: {'; '.join(open_)}. "
                "Give each in the class body, as a ClassVar or a property; facts are not inherited from another variant"
            )


def facts_of(variant: type[Variant]) -> Iterator[tuple[str, str]]:
    """(name, first line of its documentation) of every fact that the class's plug points ask for."""
    for base in variant.__mro__:
        if Variant in base.__bases__:
            for name, value in vars(base).items():
                if getattr(value, "__isabstractmethod__", False):
                    yield name, (value.__doc__ or "").strip().partition("\n")[0].rstrip(".")


class NoFormulaError(TypeError):
    """A variant is on that nothing computes."""

    def __init__(self, variant: Variant, where: str) -> None:
        super().__init__(f"{type(variant).__name__} is on, but {where} has no formula for it and would leave it out")


def tags_where(union: Any, **facts: Any) -> tuple[str, ...]:
    """The tags of the union's members that give these answers, in its order, as TOML: ('"ppo"', '"aspo"')."""
    members = [(union_tag(member), member) for member in section_types(union)]
    return tuple(f'"{tag[1]}"' for tag, member in members if tag and _answers(member, facts))


def names_where(section: type[Config], **facts: Any) -> tuple[str, ...]:
    """The fields of the section whose variant, if on, gives these answers."""
    return tuple(
        name
        for name, info in section.model_fields.items()
        if any(_answers(member, facts) for member in section_types(info.annotation))
    )


def _answers(member: type[Config], facts: dict[str, Any]) -> bool:
    return all(getattr(member, name) == answer for name, answer in facts.items())


def join_or(words: tuple[str, ...]) -> str:
    """'"a", "b" or "c"'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


@dataclass(frozen=True, slots=True)
class NotBelow:
    """At a field: its value is not below that of the field `other`."""

    other: str
    when: tuple[str, Any] | None = None
    """(field, value) of the section under which `other` is read at all; None: always."""


@dataclass(frozen=True, slots=True)
class LargestWeight:
    """At a field: the largest weight of a token, a ratio; below 1 it is probably meant as a distance."""


@dataclass(frozen=True, slots=True)
class Distance:
    """At a field: how far a bound is away; between 1 and 2 it is probably meant as the bound itself."""

    of: Literal["ratio", "log ratio"]


Effect = Literal["none", "rounding", "length"]
"""Of a changed field on the numbers of the steps to come. rounding: equal but for rounding, as under another layout.
length: what follows from the number of steps, as a schedule does, is from then on that of the new number."""


@dataclass(frozen=True, slots=True)
class MayChange:
    """At a field, or at a table for all that is in it: a run that goes on (`megarl train --resume`) takes other values.

    Where neither says so they are refused: the run would go on as another one.
    """

    effect: Effect = "none"


Mark = TypeVar("Mark", NotBelow, LargestWeight, Distance)


def marked_fields(section: Config, mark: type[Mark]) -> Iterator[tuple[str, Any, Mark]]:
    """(name, value, mark) of the section's fields with such a mark."""
    for name, info in type(section).model_fields.items():
        for metadata in info.metadata:
            if isinstance(metadata, mark):
                yield name, getattr(section, name), metadata
