"""What each trajectory of a tree weighs, when a fork shall divide what its path weighed instead of adding to it.

Branching is not independent sampling: an unweighted mean over leaves counts a sub-tree the more the more it was forked.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from engine.types import RolloutStatus, TrajectoryGroup


def inverse_branching(group: TrajectoryGroup) -> NDArray[np.float64]:
    """[trajectories of the group] product over the forks on the path of 1 / (branches there), with mean 1.

    A branch is what goes on from a node to a trainable trajectory, or the trajectory that ends there; the prompt is a
    fork of the initial paths. The mean is over the trainable trajectories, and failed ones weigh 0, their share going
    to their siblings. Two initial paths, the second with a fork of its own: 1/2, 1/4, 1/4, so 1.5, 0.75, 0.75.
    """
    trainable = [i for i, t in enumerate(group.trajectories) if t.status is not RolloutStatus.FAILED]
    paths = {i: group.tree.path_to(group.trajectories[i].leaf) for i in trainable}
    branches = Counter(path[-1] for path in paths.values())
    branches.update(group.tree.nodes[node].parent for node in {node for path in paths.values() for node in path})
    weights = np.zeros(len(group.trajectories), dtype=np.float64)
    for i, path in paths.items():
        weights[i] = len(trainable) * np.prod([1.0 / branches[node] for node in path])
    return weights
