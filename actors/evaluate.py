"""Evaluation: every question of a data set under fixed sampling, and what came of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from math import comb

import msgspec

from actors.eval_config import EvalSampling
from engine.branching import Chain
from engine.cohort import Cohort
from engine.cohorts import Cohorts
from engine.granting import Paper
from engine.rollout_config import RolloutConfig
from engine.tree import TreeBuilder
from engine.types import Prompt, RolloutStatus, TrajectoryGroup

Grow = Callable[[TreeBuilder, Cohort], Awaitable[TrajectoryGroup]]


def evaluation_rollout(config: RolloutConfig, *, samples: int, sampling: EvalSampling) -> RolloutConfig:
    """The run's limits, without branching: `samples` independent trajectories a question."""
    replace = msgspec.structs.replace
    return replace(
        config,
        size=samples,
        branching=Chain(),
        granting=Paper(),
        grow="all",
        sampling=replace(config.sampling, **sampling.sampling),
        budget=replace(config.budget, calls_per_cohort=None, calls_per_run=None, leaves_per_cohort=None),
    )


async def grow_all(
    prompts: Iterable[Prompt],
    grow: Grow,
    *,
    config: RolloutConfig,
    concurrency: int,
    on_group: Callable[[TrajectoryGroup], None],
) -> None:
    """Grow a tree for each prompt, at most `concurrency` at a time; `on_group` gets each one when it is finished.

    Cohorts are of `concurrency` prompts, and share the budgets of `config`.
    """
    slots = asyncio.Semaphore(concurrency)
    cohorts = Cohorts(config, size=concurrency)

    async def one(prompt: Prompt, cohort: Cohort) -> None:
        try:
            on_group(await grow(TreeBuilder(prompt), cohort))
        finally:
            slots.release()

    async with asyncio.TaskGroup() as tasks:
        for index, prompt in enumerate(prompts):
            await slots.acquire()
            tasks.create_task(one(prompt, cohorts[index // concurrency]), name=f"rollout {prompt.prompt_id}")


class Evaluation:
    """Adds up groups of finished trajectories."""

    def __init__(self) -> None:
        self._groups: list[tuple[int, int]] = []
        """(trajectories, correct ones) of each question."""
        self._scores: list[float] = []
        self._num_calls = 0
        self._num_truncated = 0
        self._num_failed = 0

    def add(self, group: TrajectoryGroup) -> None:
        trajectories = group.trajectories
        self._groups.append((len(trajectories), sum(t.reward.is_correct for t in trajectories)))
        self._scores += [t.reward.score for t in trajectories]
        self._num_calls += group.num_tool_calls_answered
        self._num_truncated += sum(t.status is RolloutStatus.TRUNCATED for t in trajectories)
        self._num_failed += sum(t.status is RolloutStatus.FAILED for t in trajectories)

    def metrics(self, *, k: int = 1) -> dict[str, float]:
        """`success` (mean over trajectories), `score`, `pass@k`, answered calls, truncated and failed shares."""
        count = max(len(self._scores), 1)
        found = {
            "questions": float(len(self._groups)),
            "success": sum(correct for _, correct in self._groups) / count,
            "score": sum(self._scores) / count,
            "tool_calls": self._num_calls / count,
            "truncated": self._num_truncated / count,
            "failed": self._num_failed / count,
        }
        if k > 1:
            rates = [pass_at_k(n, correct, min(k, n)) for n, correct in self._groups if n]
            found[f"pass@{k}"] = sum(rates) / max(len(rates), 1)
        return found


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased probability that one of k <= n draws without replacement is correct (2107.03374, eq. 1).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if n - correct < k:
        return 1.0
    return 1.0 - comb(n - correct, k) / comb(n, k)
