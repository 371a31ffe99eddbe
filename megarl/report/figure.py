"""What a figure shows, as data: the page, the exported files, its text for screen readers and its table are made of it.

Colours are names of `colours.LIGHT` and `colours.DARK`. NaN is a value that is missing: a line has a gap there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Axis = Literal["from_zero", "data", "log"]
"""Where the value axis starts: at zero; at the data; or a logarithmic one, without values that are not positive."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line, with its band where it has one."""

    label: str
    x: Values
    y: Values
    colour: str
    dash: int = 0
    """Of `colours.DASHES`."""
    low: Values | None = None
    high: Values | None = None
    group: int | None = None
    """Which group of runs it shows; None: the figure has a key of its own."""
    single: bool = False
    """One run of a group of several: thin, beside the mean."""
    width: float = 2.0
    guide: bool = False
    """Drawn to compare with; neither in the key nor in the table."""


@dataclass(frozen=True, kw_only=True)
class _Titled:
    key: str
    """What `megarl report --figure` calls it, and its file's name."""
    title: str
    subtitle: str
    x_title: str
    y_title: str


@dataclass(frozen=True, kw_only=True)
class LineFigure(_Titled):
    """Lines over a common axis."""

    lines: tuple[Line, ...]
    axis: Axis = "from_zero"
    x_axis: Literal["linear", "log"] = "linear"
    min_span: float = 0.0
    """The value axis covers at least this much, in its own unit, so that what barely moves looks flat."""
    stepped: bool = False
    """A value holds up to the next x: a histogram's outline."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a stack."""

    label: str
    values: Values
    colour: str


@dataclass(frozen=True, kw_only=True)
class StackFigure(_Titled):
    """Parts that add up at every x; x without a value of some part are left out beforehand."""

    x: Values
    starts: Values
    """Where the bar of each x begins; it ends at x + 0.5."""
    parts: tuple[Part, ...]
    """The first at the axis."""
    total: bool = False
    """Draw the sum as a line."""
    top: float | None = None
    """Upper end of the value axis; None: from the data."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Rows of a map that share a colour scale."""

    label: str
    rows: tuple[Part, ...]
    """From the top; the colour is not used."""
    pale: str
    full: str


@dataclass(frozen=True, kw_only=True)
class HeatFigure(_Titled):
    """A map of values: classes from top to bottom, x from left to right."""

    x: Values
    starts: Values
    bands: tuple[Band, ...]


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points of one look."""

    label: str
    x: Values
    y: Values
    colour: str
    group: int | None = None
    correlation: float
    """Of x and y; NaN where there are fewer than three points or one does not move."""
    num_points: int
    """Before thinning: all that the correlation is of."""


@dataclass(frozen=True, kw_only=True)
class ScatterFigure(_Titled):
    """Points against the diagonal; both axes have one scale."""

    clouds: tuple[Cloud, ...]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a comparison."""

    label: str
    values: tuple[float, ...]
    group: int | None = None


@dataclass(frozen=True, kw_only=True)
class BarFigure(_Titled):
    """A horizontal bar per group, made of parts."""

    parts: tuple[tuple[str, str], ...]
    """(label, colour), from the left."""
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """What was planned, and what became of it."""

    label: str
    planned: tuple[float, ...]
    """One value per part; NaN: there is no plan."""
    measured: float

    @property
    def total(self) -> float:
        """Planned in all."""
        return sum(self.planned)


@dataclass(frozen=True, kw_only=True)
class PairFigure(_Titled):
    """Two horizontal bars per row: planned, made of parts, and measured."""

    parts: tuple[tuple[str, str], ...]
    """(label, colour) of what was planned, from the left."""
    measured: tuple[str, str]
    rows: tuple[PairRow, ...]
    limit: tuple[str, float] | None = None
    """(label, value) of a line across all rows."""

    @property
    def looks(self) -> tuple[tuple[str, str], ...]:
        """(label, colour) of all values of a row."""
        return (*self.parts, self.measured)


AnyFigure = LineFigure | StackFigure | HeatFigure | ScatterFigure | BarFigure | PairFigure


def finite(values: Sequence[float] | Values) -> Values:
    """Those that are."""
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]
