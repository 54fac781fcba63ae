"""Attention over a forest on a CPU: one call of torch's flash kernel for each chain, one for each rectangle.

Where a query has keys in several calls, their results are merged by the logarithms of their normalisers, as flash
attention merges its own blocks (Dao 2205.14135). A call's backward pass needs of the forward one only the output and
the normaliser, and given those of the *whole* attention it returns the whole attention's gradient for its own keys; so
the gradients of all calls add up, and no mask and no copy of a prefix is ever made.

Axes: T tokens of the row, H query heads, K key heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor

from learner.packing.tree_pack import Structure

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attend_chains(query: Tensor, key: Tensor, value: Tensor, *, structure: Structure, scale: float | None) -> Tensor:
    """[T, H, D], [T, K, D], [T, K, D] -> [T, H, D]: each token attends to its ancestors and itself."""
    return _Chains.apply(query, key, value, structure, scale)


def _heads_first(values: Tensor) -> Tensor:
    """[T, H, D] -> [1, H, T, D], a view; the kernel's order."""
    return values.transpose(0, 1)[None]


class _Chains(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, structure: Structure, scale: float | None
    ) -> Tensor:
        q, k, v = (_heads_first(t) for t in (query, key, value))
        lengths = [stop - start for start, stop in structure.chains]
        own = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), strict=True)
        outs, normalisers = zip(*(_forward(*chain, 0.0, True, scale=scale) for chain in own), strict=True)
        out = torch.cat([o.transpose(1, 2) for o in outs], dim=1).transpose(1, 2)  # [1, H, T, D], stored as [T, H, D]
        normaliser = torch.cat(normalisers, dim=2)  # [1, H, T]
        for a, b, c, d in structure.rectangles:
            queries, keys, values = q.narrow(2, a, b - a), k.narrow(2, c, d - c), v.narrow(2, c, d - c)
            part, log_sum = _forward(queries, keys, values, 0.0, False, scale=scale)
            _merge(out.narrow(2, a, b - a), normaliser.narrow(2, a, b - a), part, log_sum)
        ctx.save_for_backward(q, k, v, out, normaliser)
        ctx.structure, ctx.scale = structure, scale
        return out[0].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, normaliser = ctx.saved_tensors
        structure: Structure = ctx.structure
        by_query = (_heads_first(grad_out), q, out, normaliser)
        lengths = [stop - start for start, stop in structure.chains]
        own = zip(*(t.split(lengths, dim=2) for t in (*by_query, k, v)), strict=True)
        parts = zip(*(_gradients(*chain, is_causal=True, scale=ctx.scale) for chain in own), strict=True)
        # a prefix's gradient is the sum over all that hangs on it: not in fewer bits than float32 has
        d_q, d_k, d_v = (torch.cat(own, dim=2).to(normaliser.dtype) for own in parts)
        for a, b, c, d in structure.rectangles:
            queries = (t.narrow(2, a, b - a) for t in by_query)
            keys, values = k.narrow(2, c, d - c), v.narrow(2, c, d - c)
            part_q, part_k, part_v = _gradients(*queries, keys, values, is_causal=False, scale=ctx.scale)
            d_q.narrow(2, a, b - a).add_(part_q)
            d_k.narrow(2, c, d - c).add_(part_k)
            d_v.narrow(2, c, d - c).add_(part_v)
        return (*(g[0].transpose(0, 1).to(q.dtype) for g in (d_q, d_k, d_v)), None, None)


def _gradients(
    grad_out: Tensor,
    query: Tensor,
    out: Tensor,
    normaliser: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the queries, keys and values of one call, given the output and normaliser of the whole attention."""
    return _backward(grad_out, query, key, value, out, normaliser, 0.0, is_causal, scale=scale)


def _merge(out: Tensor, normaliser: Tensor, part: Tensor, log_sum: Tensor) -> None:
    """Join, in place, attention over other keys to attention over some: [1, H, L, D] and the normalisers [1, H, L]."""
    total = torch.logaddexp(normaliser, log_sum)
    out.mul_((normaliser - total).exp_().unsqueeze(-1)).addcmul_(part, (log_sum - total).exp_().unsqueeze(-1))
    normaliser.copy_(total)
