"""ToolFold: what became of the calls of each tool, folded from the events: latency, hit rates, failures."""

import math
from collections import deque

import msgspec

from actors.view.tree_rows import shortened
from engine.events import AnyEvent, ToolFinished, ToolRequested

BINS_A_DECADE = 6
FIRST_S = 1e-4
"""The histogram begins here; what is faster is in its first bin."""
NUM_BINS = 7 * BINS_A_DECADE
"""To 1,000 s; what is slower is in its last bin."""
KEPT_FAILURES = 100
KEPT_SLOW = 20
MAX_TEXT = 240


class ToolRow(msgspec.Struct, kw_only=True):
    """One tool."""

    name: str
    requested: int = 0
    executed: int = 0
    cached: int = 0
    shared: int = 0
    refused: int = 0
    malformed: int = 0
    errors: int = 0
    """Of executed calls; timeouts are counted apart."""
    timeouts: int = 0
    total_s: float = 0.0
    """Of executed calls, which overlap."""
    slowest_s: float = 0.0
    histogram: list[int] = msgspec.field(default_factory=lambda: [0] * NUM_BINS)
    """Executed calls by duration, `BINS_A_DECADE` bins a decade from `FIRST_S` on."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call that is worth showing by itself."""

    tool: str
    prompt_id: str
    path: int
    t: float
    duration_s: float
    status: str
    text: str = ""


class ToolTable(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as the page gets it."""

    tools: list[ToolRow]
    failures: list[Call]
    """The last ones, newest first."""
    slow: list[Call]
    """The slowest, slowest first."""
    first_s: float = FIRST_S
    bins_a_decade: int = BINS_A_DECADE


class ToolFold:
    """`apply` every event."""

    def __init__(self) -> None:
        self._rows: dict[str, ToolRow] = {}
        self._failures: deque[Call] = deque(maxlen=KEPT_FAILURES)
        self._slow: list[Call] = []
        self.revision = 0
        """In which it last changed."""

    def apply(self, event: AnyEvent, *, revision: int = 0) -> None:
        match event:
            case ToolRequested():
                self._row(event.call.name).requested += 1
                self.revision = revision
            case ToolFinished():
                self._finish(event)
                self.revision = revision
            case _:
                pass

    @property
    def table(self) -> ToolTable:
        rows = sorted(self._rows.values(), key=lambda row: (-row.requested, row.name))
        return ToolTable(tools=rows, failures=list(self._failures)[::-1], slow=self._slow)

    def _row(self, name: str) -> ToolRow:
        return self._rows.setdefault(name, ToolRow(name=name))

    def _finish(self, event: ToolFinished) -> None:
        result = event.result
        row = self._row(result.name)
        setattr(row, result.outcome, getattr(row, result.outcome) + 1)
        if result.status != "ok":
            self._failures.append(_shown(event))
        if not result.was_executed:
            return
        row.errors += result.status == "error"
        row.timeouts += result.status == "timeout"
        row.total_s += result.duration_s
        row.slowest_s = max(row.slowest_s, result.duration_s)
        row.histogram[bin_of(result.duration_s)] += 1
        if len(self._slow) < KEPT_SLOW or result.duration_s > self._slow[-1].duration_s:
            self._slow = sorted([*self._slow, _shown(event)], key=lambda call: -call.duration_s)[:KEPT_SLOW]


def bin_of(duration_s: float) -> int:
    """Place of a duration in the histogram.

    >>> bin_of(0.0), bin_of(0.0001), bin_of(0.001), bin_of(1e9) == NUM_BINS - 1
    (0, 0, 6, True)
    """
    if duration_s <= FIRST_S:
        return 0
    return min(int(math.log10(duration_s / FIRST_S) * BINS_A_DECADE + 1e-9), NUM_BINS - 1)


def _shown(event: ToolFinished) -> Call:
    result = event.result
    return Call(
        tool=result.name,
        prompt_id=event.prompt_id,
        path=event.path,
        t=event.t,
        duration_s=result.duration_s,
        status=result.status,
        text=shortened(result.text, MAX_TEXT),
    )
