"""Sums, running sums and means over the tokens of each trajectory of a row.

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


def leaf_prefix_sums(values_N: Tensor, leaf_N: Tensor) -> Tensor:
    """[N] sum of the values of a leaf's tokens up to and including each of them, in the order they stand in.

    Values 1, 3, 5, 7 of leaves 0, 0, 2, 0: 1, 4, 5, 11.
    """
    order_N = torch.argsort(leaf_N, stable=True)
    # in float64: the differences of sums over a long row, in float32, would not be those of its leaves
    sums_N = values_N[order_N].double().cumsum(0)
    starts_L = torch.cat([sums_N.new_zeros(1), sums_N])[torch.searchsorted(leaf_N[order_N], leaf_N[order_N])]
    return torch.empty_like(values_N).index_copy(0, order_N, (sums_N - starts_L).to(values_N))
