"""TreeBuilder: a living rollout tree as the fold of its events.

Paths share nodes. A node is split only when a branch starts inside it, so the parent keeps streaming into its own
tail while the child grows another one:

    prompt ── think, search ── result ── probe ┬─ the parent's tail
                                               └─ the child's tail        (forked at probe_end)

A group of independent samples (GRPO) is the tree that forks once, at the prompt: nothing here knows the difference.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engine.calls import CallOutcome
from engine.errors import JournalError
from engine.events import (
    AnyTreeEvent,
    ForkConsidered,
    Forked,
    ForkLapsed,
    ForkRanked,
    GroupFinished,
    GroupRefused,
    Observed,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    Rewarded,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    ToolRerun,
)
from engine.nodes import NodeStore, Piece
from engine.types import (
    FinishReason,
    Float32,
    Int32,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    ToolCall,
    ToolResult,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)

_NO_FLOATS = np.empty(0, np.float32)


class Mark(NamedTuple):
    """Where an observation ends on a path: branches may start here."""

    length: int
    """Tokens of the path up to and including the observation."""
    num_calls: int
    """Calls of the path whose results it has seen by then."""


@dataclass(slots=True)
class Path:
    """One path of a living tree. Read by the rollout actor; changed only by events."""

    number: int
    tip: int
    length: int
    prompt_length: int
    forked_from: int = -1
    fork_length: int = 0
    is_supplement: bool = False
    marks: list[Mark] = field(default_factory=list[Mark])
    """One for each observation, inherited ones included."""
    finish_reason: FinishReason = ""
    """How the present segment ended; empty while it grows."""
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    results: dict[int, ToolResult] = field(default_factory=dict[int, ToolResult])
    """By index into `calls`."""
    rerun: set[int] = field(default_factory=set[int])
    """Calls that were begun a second time, because nobody knows what became of the first."""
    num_considered: int = 0
    """Observations behind which the entropy monitor has spoken, or need not speak."""
    wanted: list[bool] = field(default_factory=list[bool])
    """Whether a fork was wanted behind each considered observation, inherited ones included."""
    status: RolloutStatus | None = None
    detail: str = ""
    reward: Reward | None = None

    @property
    def is_live(self) -> bool:
        return self.status is None

    @property
    def segment_start(self) -> int:
        """Tokens of the path before the segment that is being sampled."""
        return self.marks[-1].length if self.marks else self.prompt_length

    @property
    def streak(self) -> int:
        """Observations in a row, up to the last considered one, behind which a fork was wanted (AEPO's l)."""
        return next((n for n, is_wanted in enumerate(reversed(self.wanted)) if not is_wanted), len(self.wanted))

    @property
    def num_observed_calls(self) -> int:
        """Calls whose results the policy has seen."""
        return self.marks[-1].num_calls if self.marks else 0

    @property
    def tools_run(self) -> list[str]:
        """Names of the tools that ran and succeeded, in order, with repetitions."""
        return [call.name for i, call in enumerate(self.calls) if i in self.results and self.results[i].status == "ok"]


class TreeBuilder:
    """The tree of one prompt, built by `apply` and by nothing else; replaying its events rebuilds it exactly."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.paths: list[Path] = []
        self.open_forks: dict[tuple[int, int], ForkConsidered] = {}
        """Wanted forks that nobody has granted yet, by path and length."""
        self.ranked: dict[tuple[int, int], int] = {}
        """Places of wanted forks in the ranking of their cohort, by path and length."""
        self.num_requested = 0
        self.outcomes: Counter[CallOutcome] = Counter()
        """Of calls that came back."""
        self.num_cached = 0
        self.num_prefilled = 0
        self.is_finished = False
        self.events: list[AnyTreeEvent] = []
        """All that was applied: what another actor rebuilds the tree from."""
        self._nodes = NodeStore(prompt.token_ids, paths=self.paths)

    def apply(self, event: AnyTreeEvent) -> None:
        """Take one event of this prompt, in the order in which it happened."""
        self.events.append(event)
        match event:
            case PathStarted():
                self._start(event)
            case TokensSampled():
                self._sample(event)
            case ToolRequested():
                self.paths[event.path].calls.append(event.call)
                self.num_requested += 1
            case ToolRerun():
                self.paths[event.path].rerun.add(event.index)
            case ToolFinished():
                self.paths[event.path].results[event.index] = event.result
                self.outcomes[event.result.outcome] += 1
            case Observed():
                self._observe(event)
            case ForkConsidered():
                path = self.paths[event.path]
                path.num_considered = event.observation
                path.wanted.append(event.is_wanted)
                if event.is_wanted:
                    self.open_forks[event.path, event.length] = event
            case ForkRanked():
                self.ranked[event.path, event.length] = event.place
            case ForkLapsed():
                self.open_forks.pop((event.path, event.length), None)
            case Forked():
                self._fork(event)
            case PathEnded():
                self.paths[event.path].status = event.status
                self.paths[event.path].detail = event.detail
            case Rewarded():
                self.paths[event.path].reward = event.reward
            case GroupFinished() | GroupRefused():
                self.is_finished = True
            case PromptAdmitted():
                pass

    @property
    def num_executed(self) -> int:
        """Calls that really ran: what they cost the budgets of prompt, cohort and run."""
        return self.outcomes["executed"]

    @property
    def live_paths(self) -> list[Path]:
        return [path for path in self.paths if path.is_live]

    def token_ids(self, path: Path) -> Int32:
        """All tokens of a path: what the next request sends."""
        return np.concatenate([run.whole.token_ids for run in self._nodes.walk(path.tip)])

    def segment(self, path: Path) -> Int32:
        """What the policy has sampled on this path since the last observation."""
        return self.token_ids(path)[path.segment_start :]

    def entropies(self, path: Path, start: int, count: int) -> tuple[Float32, Float32]:
        """Bounds of the entropies of at most `count` tokens sampled from position `start` on, in one segment."""
        lows: list[Float32] = []
        highs: list[Float32] = []
        position = 0
        for run in self._nodes.walk(path.tip):
            end = position + run.size
            if end > start and count > 0:
                if run.kind is not NodeKind.SAMPLED:
                    break
                where = slice(max(start - position, 0), max(start - position, 0) + count)
                lows.append(run.whole.entropy_low[where])
                highs.append(run.whole.entropy_high[where])
                count -= lows[-1].size
            position = end
        return np.concatenate([_NO_FLOATS, *lows]), np.concatenate([_NO_FLOATS, *highs])

    def group(self, *, wall_s: float = 0.0) -> TrajectoryGroup:
        """The finished group: nodes in depth-first order, parents first."""
        places, nodes = self._nodes.freeze()
        return TrajectoryGroup(
            prompt=self.prompt,
            tree=TrajectoryTree(nodes=nodes),
            trajectories=tuple(self._trajectory(path, places[path.tip]) for path in self.paths),
            num_tool_calls_requested=self.num_requested,
            num_tool_calls_executed=self.num_executed,
            num_tool_calls_cached=self.outcomes["cached"],
            num_tool_calls_shared=self.outcomes["shared"],
            num_tool_calls_refused=self.outcomes["refused"],
            num_tokens_cached=self.num_cached,
            num_tokens_prefilled=self.num_prefilled,
            wall_s=wall_s,
        )

    # -- events -----------------------------------------------------------------------------------------------

    def _start(self, event: PathStarted) -> None:
        self._expect_number(event.path)
        length = self.prompt.token_ids.size
        self.paths.append(Path(event.path, 0, length, length, is_supplement=event.is_supplement, fork_length=length))

    def _sample(self, event: TokensSampled) -> None:
        path = self.paths[event.path]
        if event.token_ids.size:
            piece = Piece(event.token_ids, event.logprobs, event.entropy_low, event.entropy_high, event.versions)
            self._nodes.tail(path, NodeKind.SAMPLED).append(piece)
            path.length += event.token_ids.size
        path.finish_reason = event.finish_reason
        self.num_cached += event.num_cached_tokens
        self.num_prefilled += event.num_prefilled_tokens

    def _observe(self, event: Observed) -> None:
        path = self.paths[event.path]
        self._nodes.tail(path, NodeKind.OBSERVED).append(Piece(event.token_ids))
        path.length += event.token_ids.size
        path.finish_reason = ""
        path.marks.append(Mark(path.length, len(path.calls)))

    def _fork(self, event: Forked) -> None:
        self._expect_number(event.child)
        parent = self.paths[event.path]
        self.open_forks.pop((event.path, event.length), None)
        tip = self._nodes.split(parent.tip, event.length)
        marks = [mark for mark in parent.marks if mark.length <= event.length]
        num_calls = marks[-1].num_calls if marks else 0
        self.paths.append(
            Path(
                event.child,
                tip,
                event.length,
                parent.prompt_length,
                forked_from=event.path,
                fork_length=event.length,
                marks=marks,
                calls=parent.calls[:num_calls],
                results={i: result for i, result in parent.results.items() if i < num_calls},
                num_considered=len(marks),
                wanted=parent.wanted[: len(marks)],
            )
        )

    def _expect_number(self, number: int) -> None:
        if number != len(self.paths):
            raise JournalError(f"{self.prompt.prompt_id}: path {number} created where {len(self.paths)} comes next")

    def _trajectory(self, path: Path, leaf: int) -> Trajectory:
        return Trajectory(
            path=path.number,
            leaf=leaf,
            status=path.status or RolloutStatus.FAILED,
            reward=path.reward or Reward(score=0.0, reason="never scored"),
            forked_from=path.forked_from,
            fork_length=path.fork_length,
            num_tool_calls=len(path.calls),
            num_multi_tool=len(set(path.tools_run)),
        )
