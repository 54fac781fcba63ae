"""The small operations between the matrix products, in torch for any device and in C for float32 on a CPU.

Axes: N rows, H hidden size, I intermediate size, M rows to draw from, V vocabulary.
"""

# torch's stubs leave parts of many signatures open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import ctypes
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from engine.types import Float32, Int32


class Sampled(NamedTuple):
    """One token a row, [M] each."""

    token_ids: Int32
    logprobs: Float32
    entropies: Float32
    """Nats, exact."""


class Ops(Protocol):
    """Each takes contiguous tensors."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[N, H] to [N, H]: each row over its root mean square, times the weight."""
        ...

    def gated_silu(self, both: Tensor) -> Tensor:
        """[N, 2 I] to [N, I]: SiLU of the first half times the second."""
        ...

    def draw(self, logits: Tensor, temperatures: Float32, coins: NDArray[np.float64]) -> Sampled:
        """The first token at which the cumulative probability exceeds the row's coin in [0, 1).

        The distribution is softmax(logits / temperature); temperature 0 takes the likeliest token and reports the
        distribution of temperature 1. `logits` is float32 [M, V] and overwritten.
        """
        ...


class TorchOps:
    """The reference."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return functional.rms_norm(x, (x.shape[1],), weight, eps)

    def gated_silu(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=1)
        return functional.silu(gate).mul_(up)

    def draw(self, logits: Tensor, temperatures: Float32, coins: NDArray[np.float64]) -> Sampled:
        is_greedy = temperatures == 0
        logits /= torch.from_numpy(np.where(is_greedy, np.float32(1), temperatures))[:, None].to(logits.device)
        logprobs = torch.log_softmax(logits, dim=-1)
        probabilities = logprobs.exp()
        entropies = (probabilities * logprobs).sum(dim=-1).neg_()
        cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
        goals = torch.from_numpy(coins).to(logits.device)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, goals, right=True)
        chosen.clamp_(max=logits.shape[1] - 1)  # only not-a-number gets there; its entropy tells the caller
        if is_greedy.any():
            greedy = torch.from_numpy(is_greedy).to(logits.device)[:, None]
            chosen = torch.where(greedy, logits.argmax(dim=-1, keepdim=True), chosen)
        return Sampled(
            chosen[:, 0].to("cpu", torch.int32).numpy(),
            logprobs.gather(1, chosen)[:, 0].cpu().numpy(),
            entropies.cpu().numpy(),
        )


class NativeOps:
    """`decode_ops.c`, for float32 on a CPU; a row's result never depends on the other rows."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._rms_norm, self._gated_silu, self._draw = library.rms_norm, library.gated_silu, library.draw

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        self._rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], eps)
        return out

    def gated_silu(self, both: Tensor) -> Tensor:
        rows, size = both.shape[0], both.shape[1] // 2
        out = both.new_empty((rows, size))
        self._gated_silu(both.data_ptr(), out.data_ptr(), rows, size)
        return out

    def draw(self, logits: Tensor, temperatures: Float32, coins: NDArray[np.float64]) -> Sampled:
        rows, size = logits.shape
        out = Sampled(np.empty(rows, np.int32), np.empty(rows, np.float32), np.empty(rows, np.float32))
        inputs = (logits.data_ptr(), temperatures.ctypes.data, coins.ctypes.data)
        self._draw(*inputs, rows, size, *(array.ctypes.data for array in out))
        return out
