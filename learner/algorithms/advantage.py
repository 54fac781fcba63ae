"""Rewards become credit for each token, by estimators with names; plain numpy, the learner knows none of them.

Axes: G trainable trajectories of a group, T tokens of a path. r_i reward of trajectory i, R all of the group's.
A trajectory that the infrastructure failed gets no credit and enters no statistic. `estimate` looks at one group, as
soon as it is finished; what needs the whole batch follows in `batch_credit.finish_batch`.

To add an estimator: write its config (a tagged Section), one function, and one line in `ESTIMATORS`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config import Section
from engine.types import Float32, NodeKind, RolloutStatus, Sample, Trajectory, TrajectoryGroup
from learner.algorithms.advantage_config import (
    AdvantageConfig,
    Aepo,
    ArpoHard,
    ArpoSoft,
    Dapo,
    DrGrpo,
    Grpo,
    Overlong,
    PlainReward,
    ReinforcePp,
    ReinforcePpBaseline,
    Rloo,
    TreeGrpo,
)
from learner.algorithms.overlong import overlong_penalty

Float64 = NDArray[np.float64]
NodeCredit = Callable[[int, int], float]
"""(trajectory, node) -> the advantage of the node's sampled tokens in that trajectory."""


def estimate(group: TrajectoryGroup, config: AdvantageConfig, *, overlong: Overlong | None = None) -> Sample | None:
    """The group with its credit, or None where it holds no learning signal.

    None: fewer than two trainable trajectories, or all their rewards equal (before `overlong` takes from them: length
    alone is no signal). `ReinforcePp` and `PlainReward` look for no contrast in a group: one trainable one is enough.
    Each array of the sample has one float32 a token of the whole path; 0 where nothing was sampled, and everywhere in
    a failed trajectory. With rewards (1, 0, 1) and `Grpo()` the arrays hold 0.577, -1.155 and 0.577 at sampled tokens.
    """
    trainable = [i for i, t in enumerate(group.trajectories) if t.status is not RolloutStatus.FAILED]
    rewards_G = np.array([group.trajectories[i].reward.score for i in trainable], dtype=np.float64)
    if not _has_signal(rewards_G, config):
        return None
    if overlong is not None:
        rewards_G = rewards_G - [overlong_penalty(_num_response_tokens(group, i), overlong) for i in trainable]
    credit = ESTIMATORS[type(config)](group, trainable, rewards_G, config)
    is_trainable = set(trainable)
    advantages = tuple(
        _spread(group, trajectory, (lambda node, i=i: credit(i, node)) if i in is_trainable else (lambda node: 0.0))
        for i, trajectory in enumerate(group.trajectories)
    )
    return Sample(group=group, advantages=advantages)


def _has_signal(rewards_G: Float64, config: AdvantageConfig) -> bool:
    if isinstance(config, ReinforcePp | PlainReward):
        return len(rewards_G) > 0
    return len(rewards_G) > 1 and rewards_G.min() < rewards_G.max()


def _num_response_tokens(group: TrajectoryGroup, trajectory: int) -> int:
    path = group.tree.path_to(group.trajectories[trajectory].leaf)
    return sum(len(group.tree.nodes[i].token_ids) for i in path if group.tree.nodes[i].kind is not NodeKind.PROMPT)


def _spread(group: TrajectoryGroup, trajectory: Trajectory, credit: Callable[[int], float]) -> Float32:
    """One value a token of the path: `credit(node)` at sampled tokens, 0 elsewhere."""
    pieces: list[Float32] = []
    for index in group.tree.path_to(trajectory.leaf):
        node = group.tree.nodes[index]
        value = credit(index) if node.kind is NodeKind.SAMPLED else 0.0
        pieces.append(np.full(len(node.token_ids), value, dtype=np.float32))
    return np.concatenate(pieces)


def z_scores(values: Float64, *, eps: float) -> Float64:
    """(x - mean) / (std + eps) with the unbiased standard deviation, as in the official code; 0 where all are equal."""
    if values.min() == values.max():
        return np.zeros_like(values)
    return (values - values.mean()) / (values.std(ddof=1) + eps)


def group_relative(rewards_G: Float64, config: Grpo) -> Float64:
    """A_i = (r_i - mean R) / (std R + eps), or r_i - mean R."""
    return z_scores(rewards_G, eps=config.eps) if config.normalise_std else rewards_G - rewards_G.mean()


def _by_trajectory(trainable: list[int], advantages_G: Float64) -> NodeCredit:
    values = dict(zip(trainable, advantages_G.tolist(), strict=True))
    return lambda trajectory, node: values[trajectory]


def grpo(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: Grpo) -> NodeCredit:
    """GRPO (2402.03300), and ARPO's soft attribution (2507.19849, Eq 6): A_i at every sampled token of trajectory i."""
    return _by_trajectory(trainable, group_relative(rewards_G, config))


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


def centred(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: Section) -> NodeCredit:
    """Dr.GRPO (2503.20783), and REINFORCE++-baseline (2501.03262) before its whitening: A_i = r_i - mean R."""
    return _by_trajectory(trainable, rewards_G - rewards_G.mean())


def rloo(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: Section) -> NodeCredit:
    """RLOO (2402.14740): A_i = r_i - mean of the others = n / (n - 1) (r_i - mean R). (1, 0, 1) gives 0.5, -1, 0.5."""
    num = len(rewards_G)
    return _by_trajectory(trainable, num / (num - 1) * (rewards_G - rewards_G.mean()))


def plain(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: Section) -> NodeCredit:
    """REINFORCE (Williams 1992), and REINFORCE++ (2501.03262) before its whitening: A_i = r_i."""
    return _by_trajectory(trainable, rewards_G)


def tree_grpo(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: TreeGrpo) -> NodeCredit:
    """Tree-GRPO (2509.21240): A_i = z-score of r_i within its tree + z-score of r_i among all of the prompt.

    A tree is what grew from one initial path: that path and all that branched off it, directly or not. One with a
    single trainable trajectory has nothing to compare, and adds 0 (the released code adds the raw reward, its mean and
    deviation being replaced by 0 and 1). Rewards (1, 0 | 1): prompt 0.577, -1.155, 0.577, plus trees 0.707, -0.707, 0.
    """
    total_G = z_scores(rewards_G, eps=config.eps)
    trees = [_initial_path(group, group.trajectories[i]) for i in trainable]
    for tree in set(trees):
        members = [k for k, other in enumerate(trees) if other == tree]
        total_G[members] += z_scores(rewards_G[members], eps=config.eps)
    return _by_trajectory(trainable, total_G)


def _initial_path(group: TrajectoryGroup, trajectory: Trajectory) -> int:
    by_path = {t.path: t for t in group.trajectories}
    while trajectory.forked_from >= 0:
        trajectory = by_path[trajectory.forked_from]
    return trajectory.path


def aepo(group: TrajectoryGroup, trainable: list[int], rewards_G: Float64, config: Aepo) -> NodeCredit:
    """AEPO (2510.14545) before it looks at entropies: A_acc, which is GRPO's."""
    return _by_trajectory(trainable, z_scores(rewards_G, eps=config.eps))


ESTIMATORS: dict[type[Section], Callable[[TrajectoryGroup, list[int], Float64, Any], NodeCredit]] = {
    Aepo: aepo,
    ArpoHard: arpo_hard,
    ArpoSoft: grpo,
    Dapo: grpo,
    DrGrpo: centred,
    Grpo: grpo,
    PlainReward: plain,
    ReinforcePp: plain,
    ReinforcePpBaseline: centred,
    Rloo: rloo,
    TreeGrpo: tree_grpo,
}
"""Config type -> (group, indices of trainable trajectories, their rewards, config) -> credit."""
