"""Outlook: how much work a path has before it, as far as this run has learned to expect.

What is learned is what anybody can see: how many tokens a segment has behind so many observations, how long a token
takes, how often a segment ends in a call, how long calls of a tool take, how often a fork is wanted. With s the
seconds of a segment, h the chance that it ends in a call, c those of a call, behind t observations:

    remaining(t) = s(t) + h(t) * (c + remaining(t + 1))
    forks(t) = h(t) * (f + (1 + f) * forks(t + 1))          f: the share of results behind which a fork is wanted

Each mean begins with the mean of everything of its kind, as if that had been seen `PRIOR` times. Paths that are over
early are seen early: in the first seconds of a run everything looks shorter than it is, for all paths alike.
"""

from collections import defaultdict
from collections.abc import Sequence

PRIOR = 4.0
"""Weight of the overall mean in the mean of a kind."""
FIRST_TOKEN_S, FIRST_SEGMENT_TOKENS, FIRST_CALL_S = 0.02, 100.0, 0.5
"""What is expected before anything was seen; weighs as one observation."""


class _Mean:
    """A mean by kind, drawn to the mean of all kinds while there is little of one."""

    def __init__(self, first: float) -> None:
        self._total, self._num = first, 1.0
        self._totals: defaultdict[object, float] = defaultdict(float)
        self._nums: defaultdict[object, float] = defaultdict(float)

    def add(self, kind: object, total: float, num: float = 1.0) -> None:
        self._total += total
        self._num += num
        self._totals[kind] += total
        self._nums[kind] += num

    def of(self, kind: object) -> float:
        overall = self._total / self._num
        return (self._totals.get(kind, 0.0) + PRIOR * overall) / (self._nums.get(kind, 0.0) + PRIOR)


class Outlook:
    """Expectations of one run, shared by its trees. Seconds are those of service, without waiting in any line.

    >>> outlook = Outlook()
    >>> for _ in range(1000):
    ...     outlook.saw_segment(0, num_tokens=100, is_call=True)
    ...     outlook.saw_segment(1, num_tokens=50, is_call=False)
    ...     outlook.saw_call("search", 2.0)
    ...     outlook.saw_tokens(100, 1.0)
    >>> round(outlook.remaining_s(0), 1), round(outlook.behind_calls_s(0, ["search"]), 1)     # 1.0 + 2.0 + 0.5
    (3.5, 2.5)
    """

    def __init__(self) -> None:
        self._tokens = _Mean(FIRST_SEGMENT_TOKENS)
        self._goes_on = _Mean(0.5)
        self._calls = _Mean(FIRST_CALL_S)
        self._pace = _Mean(FIRST_TOKEN_S)
        self._wanted = _Mean(0.0)
        self._last_turn = 0
        """The most observations that a segment was seen behind."""
        self._table: list[tuple[float, float]] | None = None
        """`remaining_s` and `forks` by turn, up to the last one; None when something was learned since."""

    def saw_tokens(self, num: int, seconds: float) -> None:
        """So many tokens came within so many seconds."""
        self._pace.add("token", seconds, num)
        self._table = None

    def saw_segment(self, turn: int, *, num_tokens: int, is_call: bool) -> None:
        """A segment behind `turn` observations has ended, in a call or in the end of its path."""
        self._tokens.add(turn, num_tokens)
        self._goes_on.add(turn, is_call)
        self._last_turn = max(self._last_turn, turn)
        self._table = None

    def saw_call(self, tool: str, seconds: float) -> None:
        """A call was answered; by a cache, in no time."""
        self._calls.add(tool, seconds)
        self._table = None

    def saw_result(self, *, is_fork_wanted: bool) -> None:
        """The branching policy spoke behind an observation."""
        self._wanted.add("fork", is_fork_wanted)
        self._table = None

    def remaining_s(self, turn: int) -> float:
        """Expected seconds to the end of a path that begins its segment behind `turn` observations."""
        return self._at(turn)[0]

    def behind_calls_s(self, turn: int, tools: Sequence[str]) -> float:
        """The same for a path that waits for calls of these tools, which run side by side."""
        return max((self._calls.of(tool) for tool in tools), default=0.0) + self.remaining_s(turn + 1)

    def forks(self, turn: int) -> float:
        """Forks to be wanted, by the path and the branches it will have, from its segment behind `turn` on."""
        return self._at(turn)[1]

    def _at(self, turn: int) -> tuple[float, float]:
        """Behind the last turn that was seen everything is expected to be as it was there."""
        if self._table is None:
            self._table = self._expect()
        return self._table[min(turn, self._last_turn)]

    def _expect(self) -> list[tuple[float, float]]:
        token_s, call_s = self._pace.of("token"), self._calls.of("any call")
        wanted = self._wanted.of("fork")
        remaining, forks = 0.0, 0.0
        table: list[tuple[float, float]] = []
        for turn in range(self._last_turn, -1, -1):
            goes_on = self._goes_on.of(turn)
            remaining = self._tokens.of(turn) * token_s + goes_on * (call_s + remaining)
            forks = goes_on * (wanted + (1.0 + wanted) * forks)
            table.append((remaining, forks))
        return table[::-1]
