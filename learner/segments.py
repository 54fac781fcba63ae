"""Sums and means over the tokens of each trajectory of a row.

Axes: N trained tokens of a row, L trajectories (leaves) of it.
"""

import torch
from torch import Tensor


def leaf_sums(values_N: Tensor, leaf_N: Tensor, *, num_leaves: int) -> Tensor:
    """[L] sum of the values of each leaf's tokens, 0 for a leaf without one; `leaf_N` are int64 in 0..L-1."""
    return values_N.new_zeros(num_leaves).index_add(0, leaf_N, values_N)


def leaf_means(values_N: Tensor, leaf_N: Tensor, *, num_leaves: int) -> Tensor:
    """[L] mean of the values of each leaf's tokens, 0 for a leaf without one.

    Values 1, 3, 5 of leaves 0, 0, 2 out of 3: 2, 0, 5.
    """
    counts_L = torch.bincount(leaf_N, minlength=num_leaves).clamp(min=1)
    return leaf_sums(values_N, leaf_N, num_leaves=num_leaves) / counts_L
