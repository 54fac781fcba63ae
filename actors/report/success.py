"""Success: what the policy came to, step by step while it trained, and greedily where it was measured.

`metrics.jsonl` has the reward of what each step trained on, and groups without a learning signal (all right or all
wrong) are never trained: near the end that mean tells of the hard prompts alone. The series here are over all
trajectories that ended in a step, trained or not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actors.report.intervals import UNKNOWN, Estimate, wilson
from actors.report.record import RunRecord
from engine.types import RolloutStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """Trajectories of the groups that were finished in the time of one step; failed ones are left out."""

    step: int
    num_trajectories: int
    success: float
    """NaN where no group was finished."""
    reward: float
    calls: float
    """Along a whole path, inherited ones included."""
    executed: float
    """That a path executed itself, on average: what it cost."""
    refused: float
    """Share of the groups that were refused."""


def outcomes(record: RunRecord) -> list[StepOutcome]:
    """One for each step."""
    found: list[StepOutcome] = []
    for number, row in enumerate(record.rows):
        trees = [tree for tree in record.trees if tree.num_steps == number]
        ended = [t for tree in trees for t in tree.group.trajectories if t.status is not RolloutStatus.FAILED]
        count = len(ended)

        def mean(total: float, count: int = count) -> float:
            return total / count if count else float("nan")

        found.append(
            StepOutcome(
                step=row.step,
                num_trajectories=count,
                success=mean(sum(t.reward.is_correct for t in ended)),
                reward=mean(sum(t.reward.score for t in ended)),
                calls=mean(sum(t.num_tool_calls for t in ended)),
                executed=mean(sum(tree.group.num_tool_calls_executed for tree in trees)),
                refused=sum(tree.is_refused for tree in trees) / len(trees) if trees else float("nan"),
            )
        )
    return found


def running(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weighted means over five neighbours, fewer at the ends; a NaN is passed over.

    >>> running([0.0, 1.0, 1.0], [1, 1, 2])
    [0.75, 0.75, 0.75]
    """
    found: list[float] = []
    for place in range(len(values)):
        near = range(max(place - 2, 0), min(place + 3, len(values)))
        known = [i for i in near if not math.isnan(values[i])]
        total = sum(weights[i] for i in known)
        found.append(sum(values[i] * weights[i] for i in known) / total if total else float("nan"))
    return found


def measured(metrics: dict[str, float]) -> Estimate:
    """Greedy success with its interval, by the number of questions; unknown where nothing was measured."""
    if "success" not in metrics:
        return UNKNOWN
    return (
        wilson(metrics["success"], metrics.get("questions", 0.0))
        if metrics.get("questions")
        else Estimate(metrics["success"], float("nan"), float("nan"))
    )
