"""Attention reads a layout: which tokens of a packed row see which, and how deep each one lies.

The layout of a row travels through Megatron as its `packed_seq_params` argument, so a layer that is computed again in
the backward pass meets the layout of its own micro-batch. Nothing here knows Megatron; the same code runs on CPU and
CUDA. A tree is another layout: it answers `attend` by its own rule and has a rotation by depth.

Axes: T tokens of the packed row, N tokens to be scored, H query heads, K key heads (H is a multiple of K), D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.pointwise import rotate


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Rotary positions of a row's tokens: computed once, applied to the queries and keys of every layer."""

    cos: Tensor
    """[T, 1, D] in float32, as the reference implementations compute it; its two halves are equal."""
    sin: Tensor
    """[T, 1, D] likewise; the first half is negated."""

    @classmethod
    def of(cls, depths: Tensor, inverse_frequencies: Tensor) -> "Rotation":
        """Depths [T] in their own sequences, from 0, and the angles of one step [D / 2]."""
        angles = torch.outer(depths.to(torch.float32), inverse_frequencies)
        cos, sin = angles.cos(), angles.sin()
        return cls(cos=torch.cat((cos, cos), dim=-1)[:, None], sin=torch.cat((-sin, sin), dim=-1)[:, None])

    def apply(self, heads: Tensor) -> Tensor:
        """[T, H, D] -> [T, H, D] in the dtype of `heads`."""
        return rotate(heads, self.cos.to(heads.dtype), self.sin.to(heads.dtype))


class Layout(Protocol):
    """What a packed row tells the model about itself."""

    qkv_format: str
    """Read by Megatron, for which `thd` is a row of tokens without a batch axis."""
    rotation: Rotation
    """Of each token, by its depth in its own sequence."""
    predictors: Tensor
    """[N] tokens of the row whose hidden states predict the scored tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        """[T, H, D], [T, K, D], [T, K, D] -> [T, H, D]. `scale` unset is 1 / sqrt(D)."""
        ...


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Sequences one after another, each causal and blind to the others. `lengths` (3, 2) has depths 0 1 2 0 1."""

    lengths: tuple[int, ...]
    rotation: Rotation
    predictors: Tensor
    qkv_format: str = field(default="thd", init=False)

    @classmethod
    def of(cls, lengths: Sequence[int], *, predictors: Tensor, inverse_frequencies: Tensor) -> "PackedLayout":
        """The layout of sequences of these lengths, on the device of the tensors."""
        depths = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])).to(predictors.device)
        return cls(lengths=tuple(lengths), rotation=Rotation.of(depths, inverse_frequencies), predictors=predictors)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        # with the batch axis set once for all sequences, each costs as few operations as can be
        parts = (t.unsqueeze(0).split(self.lengths, dim=1) for t in (query, key, value))
        outputs = [causal_attention(*own, scale=scale) for own in zip(*parts, strict=True)]
        return torch.cat(outputs, dim=1).squeeze(0)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
    """Causal attention of B sequences of L tokens: [B, L, H, D], [B, L, K, D], [B, L, K, D] -> [B, L, H, D]."""
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    out = functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


class CoreAttention(nn.Module):
    """The `core_attention` of Megatron's layer spec: hands a row's tensors to its layout."""

    def __init__(self, *, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self._scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any) -> Tensor:
        """[T, H, D], [T, K, D], [T, K, D] -> [T, H, D]; the layout is `packed_seq_params`."""
        layout: Layout = rest["packed_seq_params"]
        return layout.attend(layout.rotation.apply(query), layout.rotation.apply(key), value, scale=self._scale)
