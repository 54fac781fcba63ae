"""What each trajectory of a tree weighs, when a fork shall divide what its path weighed instead of adding to it.

Branching is not independent sampling: an unweighted mean over leaves counts a sub-tree the more the more it was forked.
With these weights every path that begins at the prompt counts 1, whatever grew from it: the sum over its leaves has the
mean of one trajectory, as long as no fork looked at what its parent sampled behind it (`docs/estimator.md`).
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from engine.types import RolloutStatus, TrajectoryGroup


def inverse_branching(group: TrajectoryGroup) -> NDArray[np.float64]:
    """[trajectories of the group] product over the forks behind the prompt of 1 / (branches there).

    A branch is what goes on from a node to a trainable trajectory, or the trajectory that ends there. Failed
    trajectories weigh 0, their share going to their siblings, so the sum is the number of paths that begin at the
    prompt and of which something is trainable. It is never scaled to another sum: how many more paths begin at the
    prompt, to fill the group up, depends on what the first ones sampled, and a mean over each group's own number would
    be biased. Two initial paths, the second with a fork of its own: 1, 1/2, 1/2.
    """
    trainable = [i for i, t in enumerate(group.trajectories) if t.status is not RolloutStatus.FAILED]
    paths = {i: group.tree.path_to(group.trajectories[i].leaf) for i in trainable}
    branches = Counter(path[-1] for path in paths.values())
    branches.update(group.tree.nodes[node].parent for node in {node for path in paths.values() for node in path})
    weights = np.zeros(len(group.trajectories), dtype=np.float64)
    for i, path in paths.items():
        weights[i] = np.prod([1.0 / branches[node] for node in path[1:]])
    return weights
