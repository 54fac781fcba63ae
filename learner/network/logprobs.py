"""Log-probabilities and entropies of given tokens under logits whose vocabulary is spread over processes.

The vocabulary is never gathered: a token costs four reduced numbers.
Axes: N scored tokens, V vocabulary of this process.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup, ReduceOp


class _LogProbs(torch.autograd.Function):
    """z = logits / temperature; log p_y = z_y - log sum exp z; H = log sum exp z - sum p z."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        logits_NV: Tensor,
        targets_N: Tensor,
        temperature: float,
        vocab_start: int,
        vocab_size: int,
        group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        width = logits_NV.shape[1]
        dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
        scores_NV = logits_NV.to(dtype) / temperature
        if vocab_start + width > vocab_size:  # the last columns pad the vocabulary to a multiple of the processes
            scores_NV[:, max(vocab_size - vocab_start, 0) :] = -torch.inf
        maximum_N = _reduced(scores_NV.amax(dim=1), group, ReduceOp.MAX)
        scores_NV.sub_(maximum_N[:, None])

        local_N = targets_N - vocab_start
        is_here_N = (local_N >= 0) & (local_N < width)
        index_N1 = local_N.clamp(0, width - 1)[:, None]
        probs_NV = scores_NV.exp()
        target_N = scores_NV.gather(1, index_N1).squeeze(1).masked_fill(~is_here_N, 0.0)
        # -inf * 0 is NaN, and p log p of an impossible token is 0
        weighted_N = (probs_NV * scores_NV.masked_fill(scores_NV == -torch.inf, 0.0)).sum(dim=1)
        total_N, target_N, weighted_N = _reduced(
            torch.stack((probs_NV.sum(dim=1), target_N, weighted_N)), group, ReduceOp.SUM
        )

        probs_NV.div_(total_N[:, None])
        log_total_N = total_N.log()
        entropies_N = log_total_N - weighted_N / total_N
        ctx.save_for_backward(probs_NV, index_N1, is_here_N, entropies_N)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.logits_dtype = temperature, logits_NV.dtype
        return target_N - log_total_N, entropies_N

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropies_N: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """d log p_y / dz_j = [j = y] - p_j, and dH / dz_j = -p_j (log p_j + H)."""
        probs_NV, index_N1, is_here_N, entropies_N = ctx.saved_tensors
        grad_NV = torch.zeros_like(probs_NV)
        if grad_logprobs_N is not None:
            grad_NV = probs_NV * -grad_logprobs_N[:, None]
            grad_NV.scatter_add_(1, index_N1, (grad_logprobs_N * is_here_N)[:, None])
        if grad_entropies_N is not None:
            surprise_NV = torch.xlogy(probs_NV, probs_NV) + probs_NV * entropies_N[:, None]
            grad_NV -= grad_entropies_N[:, None] * surprise_NV
        return (grad_NV / ctx.temperature).to(ctx.logits_dtype), None, None, None, None, None


def _reduced(value: Tensor, group: ProcessGroup | None, op: Any) -> Tensor:
    if group is not None and group.size() > 1:
        dist.all_reduce(value, op=op, group=group)
    return value


def token_logprobs(
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `targets_N` and entropies in nats, both [N] in float32 (float64 for float64 logits).

    `logits_NV` are this process's columns, the r-th of `group.size()` equal shares of a vocabulary padded to fit;
    columns from `vocab_size` on have probability 0. Both outputs are equal on all processes of the group and carry
    gradients. With logits (0, ln 3) and target 1: log 0.75 = -0.288, entropy 0.562.
    """
    rank = group.rank() if group is not None else 0
    return _LogProbs.apply(logits_NV, targets_N, temperature, rank * logits_NV.shape[1], vocab_size, group)
