"""Which of the trees of a run a report shows."""

from collections.abc import Sequence

import numpy as np

from actors.report.record import GrownTree


def choose(trees: Sequence[GrownTree], *, num_steps: int) -> GrownTree | None:
    """An instructive tree: of the middle third of the training, with mixed rewards, forks, and a fork that mattered.

    Where no tree has all of that, the one that has most of it, in this order; among equals the one nearest to the
    median length. None without any tree.
    """
    if not trees:
        return None
    lengths = [_length(tree) for tree in trees]
    usual = float(np.median(lengths))

    def lacks(number: int) -> tuple[bool | float, ...]:
        tree = trees[number]
        rewards = {trajectory.reward.score for trajectory in tree.group.trajectories}
        is_mixed = any(
            t.forked_from >= 0 and t.reward.score != tree.group.trajectories[t.forked_from].reward.score
            for t in tree.group.trajectories
        )
        is_middle = num_steps <= 3 * tree.version <= 2 * num_steps
        is_moderate = lengths[number] <= 2 * usual
        lacking = (not is_moderate, not tree.group.num_forks, len(rewards) < 2, not is_middle, not is_mixed)
        return *lacking, abs(lengths[number] - usual)

    return trees[min(range(len(trees)), key=lacks)]


def _length(tree: GrownTree) -> int:
    return sum(node.token_ids.size for node in tree.group.tree.nodes[1:])
