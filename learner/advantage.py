"""Rewards become credit for each token, by estimators with names; plain numpy, the learner knows none of them.

Axes: G trainable trajectories of a group, T tokens of a path. r_i reward of trajectory i, R all of the group's.
A trajectory that the infrastructure failed gets no credit and enters no statistic.

To add an estimator: write its config (a tagged Section), one function, and one line in `ESTIMATORS`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config import NonNegativeFloat, Section
from engine.types import Float32, NodeKind, RolloutStatus, Sample, Trajectory, TrajectoryGroup

Float64 = NDArray[np.float64]
NodeCredit = Callable[[int, int], float]
"""(trajectory, node) -> the advantage of the node's sampled tokens in that trajectory."""


class Grpo(Section, tag="grpo", tag_field="kind"):
    """Group-relative advantages: every sampled token of a trajectory has the same."""

    normalise_std: bool = True
    """Divide by the group's standard deviation; off is Dr.GRPO's choice."""
    eps: NonNegativeFloat = 1e-6
    """Added to the standard deviation."""


class ArpoSoft(Grpo, tag="arpo_soft", tag_field="kind"):
    """ARPO's default: GRPO on the leaves; a shared token meets the mean through its equal ratios."""


class ArpoHard(Grpo, tag="arpo_hard", tag_field="kind"):
    """ARPO's other one: a shared token has the mean advantage of the trajectories that share it."""


AdvantageConfig = ArpoSoft | ArpoHard | Grpo


def estimate(group: TrajectoryGroup, config: AdvantageConfig) -> Sample | None:
    """The group with its credit, or None where it holds no learning signal.

    None: fewer than two trainable trajectories, or all their rewards equal. Each array of the sample has one float32 a
    token of the whole path; 0 where nothing was sampled, and everywhere in a failed trajectory. With rewards (1, 0, 1)
    and `Grpo()` the arrays hold 0.577, -1.155 and 0.577 at sampled tokens.
    """
    trainable = [i for i, t in enumerate(group.trajectories) if t.status is not RolloutStatus.FAILED]
    rewards_G = np.array([group.trajectories[i].reward.score for i in trainable], dtype=np.float64)
    if len(trainable) < 2 or rewards_G.min() == rewards_G.max():
        return None
    credit = ESTIMATORS[type(config)](group, trainable, rewards_G, config)
    is_trainable = set(trainable)
    advantages = tuple(
        _spread(group, trajectory, (lambda node, i=i: credit(i, node)) if i in is_trainable else (lambda node: 0.0))
        for i, trajectory in enumerate(group.trajectories)
    )
    return Sample(group=group, advantages=advantages)


def _spread(group: TrajectoryGroup, trajectory: Trajectory, credit: Callable[[int], float]) -> Float32:
    """One value a token of the path: `credit(node)` at sampled tokens, 0 elsewhere."""
    pieces: list[Float32] = []
    for index in group.tree.path_to(trajectory.leaf):
        node = group.tree.nodes[index]
        value = credit(index) if node.kind is NodeKind.SAMPLED else 0.0
        pieces.append(np.full(len(node.token_ids), value, dtype=np.float32))
    return np.concatenate(pieces)


def group_relative(rewards_G: Float64, config: Grpo) -> Float64:
    """A_i = (r_i - mean R) / (std R + eps), or r_i - mean R; std is the unbiased one, as in the official code."""
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (rewards_G.std(ddof=1) + config.eps) if config.normalise_std else centred_G


def grpo(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: Grpo) -> NodeCredit:
    """GRPO (2402.03300), and ARPO's soft attribution (2507.19849, Eq 6): A_i at every sampled token of trajectory i."""
    by_trajectory = dict(zip(trainable, group_relative(rewards_G, config).tolist(), strict=True))
    return lambda trajectory, node: by_trajectory[trajectory]


def arpo_hard(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: Grpo) -> NodeCredit:
    """ARPO's hard attribution (2507.19849, section 3.2): A_shared = (1/d) sum over the d trajectories sharing a token.

    A token of a node belongs to every trainable trajectory whose path passes the node. A leaf's own tokens (d = 1)
    keep A_i, so a tree that forks at the prompt gives exactly GRPO.
    """
    members: dict[int, list[float]] = {}
    for i, advantage in zip(trainable, group_relative(rewards_G, config).tolist(), strict=True):
        for node in group.tree.path_to(group.trajectories[i].leaf):
            members.setdefault(node, []).append(advantage)
    means = {node: sum(values) / len(values) for node, values in members.items()}
    return lambda trajectory, node: means[node]


ESTIMATORS: dict[type[Section], Callable[[TrajectoryGroup, list[int], Float64, Any], NodeCredit]] = {
    ArpoSoft: grpo,
    ArpoHard: arpo_hard,
    Grpo: grpo,
}
"""Config type -> (group, indices of trainable trajectories, their rewards, config) -> credit."""
