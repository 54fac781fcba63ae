"""Metrics: one row a step, folded from the events; nothing else in the engine counts anything for display."""

from collections import Counter
from typing import Any

import msgspec

from engine.events import (
    AnyEvent,
    BatchTaken,
    Evaluated,
    ForkConsidered,
    Forked,
    GroupRefused,
    PathEnded,
    PromptAdmitted,
    Rewarded,
    StepFinished,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    WeightsPublished,
)
from engine.reports import Mismatch
from engine.types import Reward, RolloutStatus, Version


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What happened up to the end of one step, since the end of the one before. One line of `metrics.jsonl`."""

    step: int
    t: float
    """Seconds since the run began, over all processes that worked on it."""
    version: Version
    reward: float
    """Mean score of the trajectories that the step trained on; failed ones are not."""
    success: float
    """Share of them that were correct."""
    staleness: int
    """Version that the step trained minus its oldest trained token's."""
    num_groups: int
    num_refused: int
    num_trajectories: int
    """That ended since the step before, trained or not; the counts below are of the same time."""
    num_failed: int
    num_truncated: int
    num_sampled_tokens: int
    num_prefilled_tokens: int
    num_cached_tokens: int
    num_mixed_tokens: int
    """Sampled over KV of older weights (`in_place` updates)."""
    num_tool_calls_requested: int
    num_tool_calls_executed: int
    num_tool_calls_cached: int
    """Answered by an earlier execution."""
    num_tool_calls_shared: int
    """Answered by an equal call's execution, which was under way."""
    num_tool_calls_refused: int
    """By a budget, or because the tool's host was being left alone."""
    num_forks_considered: int
    num_forks_wanted: int
    num_forks: int
    tool_s: float
    """Summed over calls, which overlap."""
    step_s: float
    """The optimiser step."""
    wait_s: float
    """The learner waited for a batch."""
    loss: float
    grad_norm: float
    entropy: float
    kl_rollout: float
    ratio_max: float
    clip_fraction: float
    num_trained_tokens: int
    num_computed_tokens: int
    num_path_tokens: int = 0
    rejected_fraction: float = 0.0
    mismatch: Mismatch = "none"


MEANS = ("loss", "grad_norm", "entropy", "kl_rollout", "ratio_max", "clip_fraction", "rejected_fraction")
"""What a row takes over from the learner's report."""


class MetricsTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What a `MetricsFold` knows: part of a snapshot."""

    counts: dict[str, int]
    tool_s: float
    rewards: dict[str, dict[int, Reward]]
    oldest: dict[str, Version]
    failed: list[tuple[str, int]]
    version: Version
    num_tool_calls_requested: int
    num_tool_calls_executed: int
    train_s: float


class MetricsFold:
    """`apply` every event; it answers with a row whenever a step ends."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._tool_s = 0.0
        self._rewards: dict[str, dict[int, Reward]] = {}
        self._oldest: dict[str, Version] = {}
        self._failed: set[tuple[str, int]] = set()
        self._version: Version = 0
        self._taken: BatchTaken | None = None
        self.num_tool_calls_requested = 0
        self.num_tool_calls_executed = 0
        self.train_s = 0.0
        self.last_evaluation: Evaluated | None = None

    @property
    def totals(self) -> MetricsTotals:
        """Between two steps: nothing of a batch that was taken and not trained."""
        return MetricsTotals(
            counts=dict(self._counts),
            tool_s=self._tool_s,
            rewards={name: dict(rewards) for name, rewards in self._rewards.items()},
            oldest=dict(self._oldest),
            failed=sorted(self._failed),
            version=self._version,
            num_tool_calls_requested=self.num_tool_calls_requested,
            num_tool_calls_executed=self.num_tool_calls_executed,
            train_s=self.train_s,
        )

    def restore(self, totals: MetricsTotals) -> None:
        """Go on from there."""
        self._counts = Counter(totals.counts)
        self._tool_s = totals.tool_s
        self._rewards = {name: dict(rewards) for name, rewards in totals.rewards.items()}
        self._oldest = dict(totals.oldest)
        self._failed = set(totals.failed)
        self._version = totals.version
        self.num_tool_calls_requested = totals.num_tool_calls_requested
        self.num_tool_calls_executed = totals.num_tool_calls_executed
        self.train_s = totals.train_s

    def apply(self, event: AnyEvent) -> StepMetrics | None:
        """Take one event; a row at the end of a step."""
        counts = self._counts
        match event:
            case TokensSampled():
                counts["sampled"] += event.token_ids.size
                counts["mixed"] += event.token_ids.size * event.is_mixed
                counts["prefilled"] += event.num_prefilled_tokens
                counts["cached"] += event.num_cached_tokens
                if event.versions.size:
                    oldest = min(event.versions.tolist())
                    self._oldest[event.prompt_id] = min(self._oldest.get(event.prompt_id, oldest), oldest)
            case ToolRequested():
                counts["requested"] += 1
                self.num_tool_calls_requested += 1
            case ToolFinished():
                counts[f"calls {event.result.outcome}"] += 1
                self.num_tool_calls_executed += event.result.was_executed
                self._tool_s += event.result.duration_s
            case ForkConsidered():
                counts["considered"] += 1
                counts["wanted"] += event.is_wanted
            case Forked():
                counts["forks"] += 1
            case PathEnded():
                counts["trajectories"] += 1
                counts[event.status.value] += 1
                if event.status is RolloutStatus.FAILED:
                    self._failed.add((event.prompt_id, event.path))
            case Rewarded():
                self._rewards.setdefault(event.prompt_id, {})[event.path] = event.reward
            case GroupRefused():
                counts["refused"] += 1
                self._forget(event.prompt_id)
            case PromptAdmitted():
                self._rewards[event.prompt_id] = {}
            case BatchTaken():
                self._taken = event
            case WeightsPublished():
                self._version = event.version
            case Evaluated():
                self.last_evaluation = event
            case StepFinished():
                return self._row(event)
            case _:
                pass
        return None

    def _row(self, event: StepFinished) -> StepMetrics | None:
        taken, report, counts = self._taken, event.report, self._counts
        if taken is None or taken.step != report.step:
            return None
        rewards = [
            reward
            for name in taken.prompt_ids
            for path, reward in self._rewards.get(name, {}).items()
            if (name, path) not in self._failed
        ]
        oldest = min((self._oldest[name] for name in taken.prompt_ids if name in self._oldest), default=self._version)
        self.train_s += report.duration_s
        shared: dict[str, Any] = {
            name: getattr(report, name)
            for name in (*MEANS, "num_trained_tokens", "num_computed_tokens", "num_path_tokens", "mismatch")
        }
        row = StepMetrics(
            step=report.step,
            t=event.t,
            version=report.version,
            reward=sum(reward.score for reward in rewards) / max(len(rewards), 1),
            success=sum(reward.is_correct for reward in rewards) / max(len(rewards), 1),
            staleness=report.version - 1 - oldest,
            num_groups=len(taken.prompt_ids),
            num_refused=counts["refused"],
            num_trajectories=counts["trajectories"],
            num_failed=counts[RolloutStatus.FAILED.value],
            num_truncated=counts[RolloutStatus.TRUNCATED.value],
            num_sampled_tokens=counts["sampled"],
            num_prefilled_tokens=counts["prefilled"],
            num_cached_tokens=counts["cached"],
            num_mixed_tokens=counts["mixed"],
            num_tool_calls_requested=counts["requested"],
            num_tool_calls_executed=counts["calls executed"],
            num_tool_calls_cached=counts["calls cached"],
            num_tool_calls_shared=counts["calls shared"],
            num_tool_calls_refused=counts["calls refused"],
            num_forks_considered=counts["considered"],
            num_forks_wanted=counts["wanted"],
            num_forks=counts["forks"],
            tool_s=self._tool_s,
            step_s=report.duration_s,
            wait_s=taken.wait_s,
            **shared,
        )
        for name in taken.prompt_ids:
            self._forget(name)
        self._counts = Counter()
        self._tool_s = 0.0
        return row

    def _forget(self, prompt_id: str) -> None:
        self._rewards.pop(prompt_id, None)
        self._oldest.pop(prompt_id, None)
        self._failed = {(name, path) for name, path in self._failed if name != prompt_id}
