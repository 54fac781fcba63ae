"""Attention and rotary positions read a layout: which tokens of a packed row see which, and how deep each one lies.

The layout of a row travels through Megatron as its `packed_seq_params` argument, so a layer that is computed again in
the backward pass meets the layout of its own micro-batch. Nothing here knows Megatron; the same code runs on CPU and
CUDA. A tree is another layout: it answers `attend` by its own rule and has `positions` that are depths.

Axes: T tokens of the packed row, N tokens to be scored, H query heads, K key heads (H is a multiple of K), D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.inference.shape import ModelShape, inverse_frequencies


class Layout(Protocol):
    """What a packed row tells the model about itself."""

    qkv_format: str
    """Read by Megatron, which reshapes nothing for `sbhd`."""
    cp_group: Any
    """Read by Megatron; context parallelism is not used."""
    positions: Tensor
    """[T] depth of each token in its own sequence, from 0."""
    predictors: Tensor
    """[N] tokens of the row whose hidden states predict the scored tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        """[T, H, D], [T, K, D], [T, K, D] -> [T, H, D]. `scale` unset is 1 / sqrt(D)."""
        ...


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Sequences one after another, each causal and blind to the others. `lengths` (3, 2) has positions 0 1 2 0 1."""

    lengths: tuple[int, ...]
    positions: Tensor
    predictors: Tensor
    qkv_format: str = field(default="sbhd", init=False)
    cp_group: Any = field(default=None, init=False)

    @classmethod
    def of(cls, lengths: Sequence[int], predictors: Tensor) -> "PackedLayout":
        """The layout of sequences of these lengths, on the device of `predictors`."""
        positions = np.concatenate([np.arange(n) for n in lengths])
        return cls(
            lengths=tuple(lengths),
            positions=torch.from_numpy(positions).to(predictors.device),
            predictors=predictors,
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        rows = [
            causal_attention(*parts, scale=scale)
            for parts in zip(query.split(self.lengths), key.split(self.lengths), value.split(self.lengths), strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
    """Causal attention of one sequence: [T, H, D], [T, K, D], [T, K, D] -> [T, H, D]."""
    heads_first = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
    out = functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=scale, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)


class CoreAttention(nn.Module):
    """The `core_attention` of Megatron's layer spec: hands a row's tensors to its layout."""

    def __init__(self, *, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self._scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any) -> Tensor:
        """[T, 1, H, D], [T, 1, K, D], [T, 1, K, D] -> [T, 1, H * D]; the layout is `packed_seq_params`."""
        layout: Layout = rest["packed_seq_params"]
        out = layout.attend(query.squeeze(1), key.squeeze(1), value.squeeze(1), scale=self._scale)
        return out.reshape(out.shape[0], 1, -1)


class RotaryPositions(nn.Module):
    """Replaces Megatron's rotary embedding: angles come from the layout's positions, not from the place in the row."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.from_numpy(inverse_frequencies(shape)), persistent=False)

    def get_rotary_seq_len(self, _context: Any, _decoder: Any, _input: Any, _config: Any, layout: Layout) -> Tensor:
        """Megatron asks here what to pass to `forward`, and shows the layout: the answer is its positions."""
        return layout.positions

    def forward(self, positions: Tensor, **_: Any) -> Tensor:
        """[T] -> angles [T, 1, 1, D] in float32, as the reference implementations compute them."""
        angles = torch.outer(positions.to(torch.float32), self.inv_freq)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]
