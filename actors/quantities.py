"""Quantities: numbers the way a person reads them."""

import math
from collections.abc import Sequence
from itertools import pairwise

NOTHING = "\N{EN DASH}"
"""In place of a number that is not known."""
BLOCKS = "▁▂▃▄▅▆▇█"
SHARES = ("success", "pass@", "truncated", "failed")
"""What begins like this is a share, from 0 to 1, where it is a float."""


def duration(seconds: float) -> str:
    """Two digits of what is short, whole seconds or minutes of what is not.

    >>> [duration(seconds) for seconds in (0.35, 3.4, 48.2, 151.2, 3900.0)]
    ['0.35 s', '3.4 s', '48 s', '2 min 31 s', '1 h 05 min']
    """
    if math.isnan(seconds):
        return NOTHING
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 9.95 else _whole(round(seconds))


def left(seconds: float) -> str:
    """An estimate, no finer than it deserves: to 1 s below 20 s, 5 s below 2 min, 10 s below 10 min, then minutes."""
    for limit, unit in ((20, 1), (120, 5), (600, 10)):
        if seconds < limit:
            return f"{_whole(round(seconds / unit) * unit)} left"
    minutes = round(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{_whole(minutes * 60)} left"


def percent(share: float) -> str:
    """`31.2 %` for 0.312: one decimal place, of every share; an en dash for NaN."""
    return NOTHING if math.isnan(share) else f"{100 * share:.1f} %"


def count(number: float) -> str:
    """`12,345`."""
    return f"{number:,.0f}"


def pace(seconds_each: float, *, unit: str) -> str:
    """How fast something goes: `12.5 steps/s`, or `3.4 s/step` where one takes a second or more."""
    if seconds_each >= 1:
        return f"{duration(seconds_each)}/{unit}"
    rate = 1 / max(seconds_each, 1e-9)
    return f"{rate:.1f} {unit}s/s" if rate < 99.95 else f"{count(rate)} {unit}s/s"


def quantity(name: str, value: object) -> str:
    """A value by what its name says: shares in percent, `..._s` as a duration, counts in thousands.

    >>> quantity("success_after", 0.94), quantity("wall_s", 151.2), quantity("steps", 12345), quantity("x", 0.5)
    ('94.0 %', '2 min 31 s', '12,345', '0.5')
    """
    match value:
        case bool():
            return str(value)
        case int():
            return count(value) if name != "seed" else str(value)
        case float() if name.startswith(SHARES) or "_success" in name:
            return percent(value)
        case float() if name.endswith("_s") and not name.endswith("_per_s"):
            return duration(value)
        case float() if value.is_integer() and abs(value) < 1e15:
            return count(value)
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def _whole(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def label(name: str) -> str:
    """A field's name in words: `num_tool_calls_requested` is `tool calls requested`, `wall_s` is `wall time`."""
    words = name.removeprefix("num_").replace("_", " ")
    return f"{words[:-2]} time" if words.endswith(" s") else words


def sparkline(values: Sequence[float], *, width: int, low: float, high: float) -> str:
    """A curve of block characters, one a value; neighbours share one, by their mean, where `width` is too small.

    Non-empty `values`; the lowest block is at `low`, the highest at `high`.

    >>> sparkline([0.0, 0.5, 1.0], width=10, low=0.0, high=1.0)
    '▁▅█'
    """
    cells = min(len(values), width)
    edges = [len(values) * cell // cells for cell in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    span = max(high - low, 1e-12)
    heights = [round((mean - low) / span * (len(BLOCKS) - 1)) for mean in means]
    return "".join(BLOCKS[min(max(height, 0), len(BLOCKS) - 1)] for height in heights)
