"""Charts: what is to be plotted, as values of plain numbers; `plots` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

INK, MUTED, FAINT, RULE = "#1f2933", "#66727f", "#a9b2bb", "#dfe3e8"
BLUE, RUST, OCHRE, GREEN, VIOLET = "#2b5c8a", "#b5532b", "#c4912f", "#3f7f5f", "#6d5a8c"
COLOURS = (BLUE, RUST, OCHRE, GREEN, VIOLET)

Values = Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series; a NaN is passed over."""

    x: Values
    y: Values
    label: str = ""
    """Written behind its last point; nothing for an empty one."""
    colour: str = BLUE
    low: Values = ()
    high: Values = ()
    """Bounds of a 95 % interval: a band, or bars where there are only markers."""
    form: Literal["line", "thin", "dashed", "steps", "markers"] = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line over the whole width."""

    y: float
    label: str
    colour: str = MUTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Series over a common axis."""

    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    x_label: str
    y_label: str
    is_share: bool = False
    """From 0 to 1, written as per cent."""
    is_log: bool = False
    from_zero: bool = False
    y_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of `Bars`: nested amounts, the largest first, or one value with an interval."""

    label: str
    amounts: Sequence[float]
    low: float = float("nan")
    high: float = float("nan")
    colour: str = BLUE
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Rows of nested horizontal bars (`bars`), or of points with intervals (`points`)."""

    rows: Sequence[Bar]
    form: Literal["bars", "points"]
    x_label: str
    is_share: bool = False
    mark: tuple[float, str] | None = None
    """A vertical line, with its label."""


Chart = Lines | Bars
