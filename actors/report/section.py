"""Section: a part of the page, as plain values that the template sets; and how numbers are written in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.quantities import NOTHING, count, percent
from actors.report.intervals import Estimate

MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot with what stands under it."""

    svg: str
    caption: str = ""
    wide: str = ""
    """The same plot over the whole width of the page, where that is wide enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text; all columns but the first hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    num_text_columns: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A time, divided into named parts: (name, seconds, share of the whole, number of its colour or -1 for pale)."""

    title: str
    parts: Sequence[tuple[str, str, float, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, what the numbers say in plain words, and the numbers."""

    key: str
    """Its anchor."""
    title: str
    sentences: Sequence[str]
    figures: Sequence[Figure] = ()
    strips: Sequence[Strip] = ()
    tables: Sequence[Table] = field(default_factory=list[Table])
    note: str = ""
    """How the numbers were obtained."""


def number(value: float, *, digits: int = 3) -> str:
    """With so many significant digits, thousands apart; an exponent below 1e-4 only.

    >>> number(0.01234), number(31234.5), number(-2.0), number(0.00001234)
    ('0.0123', '31,234', '−2.00', '1.23·10⁻⁵')
    """
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value and abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPTS)}".replace("-", MINUS)
    decimals = digits - 1 if not value else max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(decimals, 6)}f}".replace("-", MINUS)


def counted(value: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `counted(1, "step")`, `counted(2, "step")`."""
    return f"{count(value)} {singular if value == 1 else plural or singular + 's'}"


def spread(estimate: Estimate) -> str:
    """The interval of a number: `0.10 to 0.12`, or nothing where there is none."""
    return f"{number(estimate.low)} to {number(estimate.high)}" if estimate.has_interval else ""


def share_spread(estimate: Estimate) -> str:
    """The interval of a share: `31.0 to 45.2 %`."""
    if not estimate.has_interval:
        return ""
    return f"{percent(estimate.low).removesuffix(' %')} to {percent(estimate.high)}"


def with_spread(text: str, interval: str) -> str:
    """`text (interval)`, or the text alone."""
    return f"{text} ({interval})" if interval else text
