"""What every config section is: frozen, strict, with no unknown keys."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class ConfigError(ValueError):
    """The configuration cannot work; the text says what was expected, what was found and what to change.

    `problems` holds the same one by one, without the heading that names the file.
    """

    def __init__(self, text: str, problems: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.problems: tuple[str, ...] = tuple(problems) or (text,)


class Config(BaseModel):
    """Base of every section. A field's docstring is its documentation (`megarl show --fields`).

    Numbers are finite; where inf means "off" the field is `Unbounded`.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


Unbounded = Annotated[float, Field(allow_inf_nan=True)]
"""A number that may be inf. Give it a bound (ge, gt): NaN fails every bound, and only there."""


Section = TypeVar("Section", bound=Config)


def raise_problems(section: Section, checks: Sequence[Callable[[Section], Iterator[str]]]) -> Section:
    """The section itself, for a model validator. Raises one ConfigError with every problem that the checks find."""
    problems = [text for check in checks for text in check(section)]
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return section
