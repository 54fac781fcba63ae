"""TreeRow: one tree as a line of the page's list, folded from its events and its spans."""

from array import array

import msgspec

from actors.view.spans import AnySpan, PathSpan
from actors.view.tail import Place
from engine.events import (
    AnyTreeEvent,
    BatchTaken,
    ForkConsidered,
    Forked,
    GroupFinished,
    GroupRefused,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    Rewarded,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    WeightsPublished,
)
from engine.types import RolloutStatus

MAX_QUESTION = 160


class LastPath(msgspec.Struct, kw_only=True):
    """The path that ended last, which the group waited for."""

    path: int
    sampling_s: float = 0.0
    tool_s: float = 0.0
    scoring_s: float = 0.0


class TreeRow(msgspec.Struct, kw_only=True):
    """What there is to say of a tree without its texts. Times are seconds on the clock of the run."""

    id: str
    index: int
    question: str
    version: int
    admitted_s: float
    state: str = "growing"
    """`growing`, `buffered` (finished, not yet taken), `training`, `trained` or `refused`."""
    finished_s: float | None = None
    taken_s: float | None = None
    released_s: float | None = None
    step: int | None = None
    reason: str = ""
    """Why it was refused."""
    paths: int = 0
    ended: int = 0
    forks: int = 0
    considered: int = 0
    wanted: int = 0
    tokens: int = 0
    calls: int = 0
    executed: int = 0
    failed: int = 0
    """Paths that the infrastructure failed."""
    scored: int = 0
    correct: int = 0
    score_sum: float = 0.0
    score_min: float = 0.0
    score_max: float = 0.0
    sampling_s: float = 0.0
    """Summed over paths, which overlap."""
    tool_s: float = 0.0
    last: LastPath | None = None
    """Of a finished one."""


class Growth:
    """A row that still changes, and where the events of its tree lie in the journal."""

    def __init__(self, event: PromptAdmitted) -> None:
        prompt = event.prompt
        self.row = TreeRow(
            id=prompt.prompt_id,
            index=event.index,
            question=shortened(prompt.question, MAX_QUESTION),
            version=event.version,
            admitted_s=event.t,
        )
        self._times: dict[int, LastPath] = {}
        self._last = -1
        self._places = array("q")

    def add_place(self, place: Place) -> None:
        self._places.extend(place)

    @property
    def places(self) -> list[Place]:
        """Of all its events, in order."""
        flat = self._places
        return [Place(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]

    def apply(self, event: AnyTreeEvent) -> None:
        row = self.row
        match event:
            case PathStarted():
                row.paths += 1
            case Forked():
                row.paths += 1
                row.forks += 1
            case ForkConsidered():
                row.considered += 1
                row.wanted += event.is_wanted
            case TokensSampled():
                row.tokens += event.token_ids.size
            case ToolRequested():
                row.calls += 1
            case ToolFinished():
                row.executed += event.result.was_executed
            case Rewarded():
                self._score(event.reward.score, is_correct=event.reward.is_correct)
            case PathEnded():
                row.ended += 1
                row.failed += event.status is RolloutStatus.FAILED
                self._last = event.path
            case GroupFinished():
                row.state, row.finished_s = "buffered", event.t
                row.last = self._times.get(self._last)
                self._times.clear()
            case GroupRefused():
                row.state, row.reason, row.released_s = "refused", event.reason, event.t
            case _:
                pass

    def take(self, event: BatchTaken) -> None:
        self.row.state, self.row.taken_s, self.row.step = "training", event.t, event.step

    def release(self, event: WeightsPublished) -> None:
        self.row.state, self.row.released_s = "trained", event.t

    def add_span(self, span: AnySpan) -> None:
        """Take note of what one of its paths did."""
        if not isinstance(span, PathSpan):
            return
        times = self._times.setdefault(span.path, LastPath(path=span.path))
        spent_s = span.end_s - span.start_s
        match span.state:
            case "sampling":
                times.sampling_s += spent_s
                self.row.sampling_s += spent_s
            case "tool":
                times.tool_s += spent_s
                self.row.tool_s += spent_s
            case "scoring":
                times.scoring_s += spent_s

    def _score(self, score: float, *, is_correct: bool) -> None:
        row = self.row
        row.score_min = min(row.score_min, score) if row.scored else score
        row.score_max = max(row.score_max, score) if row.scored else score
        row.scored += 1
        row.correct += is_correct
        row.score_sum += score


def shortened(text: str, size: int) -> str:
    """At most so many characters of a text.

    >>> shortened("abcdef", 4), shortened("abcd", 4)
    ('abc…', 'abcd')
    """
    return text if len(text) <= size else text[: size - 1] + "…"
