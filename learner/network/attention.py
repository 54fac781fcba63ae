"""Attention reads a layout: which tokens of a packed row see which, and how deep each one lies.

The layout of a row travels through Megatron as its `packed_seq_params` argument, so a layer that is computed again in
the backward pass meets the layout of its own micro-batch. Nothing here knows Megatron.

Four ways to compute the same attention, chosen by `LearnerConfig.attention`:

    chains   a chain or a rectangle at a time, by torch's flash kernel for CPUs (`attention_chains`)
    flex     FlexAttention over a block mask of ancestors, for CUDA (`attention_cuda`)
    flash    flash-attn's kernel for rows without a fork, for CUDA (`attention_cuda`)
    dense    one masked product of all pairs: the reference, for tests and for anything else

Axes: T tokens of the packed row, N tokens to be scored, H query heads, K key heads (H is a multiple of K), D head size.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.config import AttentionKind
from learner.network.attention_chains import attend_chains
from learner.network.pointwise import rotate
from learner.packing.tree_pack import Structure


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


class Attend(Protocol):
    """Attention of a row whose structure it knows."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        """[T, H, D], [T, K, D], [T, K, D] -> [T, H, D]. `scale` unset is 1 / sqrt(D)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a packed row tells the model about itself."""

    attend: Attend
    rotation: Rotation
    predictors: Tensor
    """[N] tokens of the row whose hidden states predict the scored tokens."""
    qkv_format: str = field(default="thd", init=False)
    """Read by Megatron, for which `thd` is a row of tokens without a batch axis."""

    @classmethod
    def of(
        cls,
        structure: Structure,
        *,
        predictors: Tensor,
        inverse_frequencies: Tensor,
        kind: AttentionKind,
        dtype: torch.dtype,
    ) -> "Layout":
        """The layout of a row of this structure, on the device of the tensors."""
        depths = torch.from_numpy(structure.depths).to(predictors.device)
        return cls(
            attend=attention(structure, kind=kind, device=predictors.device, dtype=dtype),
            rotation=Rotation.of(depths, inverse_frequencies),
            predictors=predictors,
        )


def attention(
    structure: Structure, *, kind: AttentionKind, device: torch.device, dtype: torch.dtype = torch.float32
) -> Attend:
    """The attention of a row in `dtype`. `auto` is `chains` on a CPU; on CUDA `flash` for rows without a fork in half
    precision where flash-attn is installed, and `flex` for all others."""
    if kind == "dense":
        return Dense(ancestor_mask(structure, device))
    if kind == "chains" or (kind == "auto" and device.type == "cpu"):
        return partial(attend_chains, structure=structure)
    from learner.network import attention_cuda  # brings the compiler along

    if (attention_cuda.best(structure, dtype) if kind == "auto" else kind) == "flash":
        return attention_cuda.Flash(structure, device)
    return attention_cuda.Flex(structure, device)


def ancestor_mask(structure: Structure, device: torch.device) -> Tensor:
    """[T, T] true where the query (row) sees the key (column): `key <= query < ends[key]`."""
    place = np.arange(structure.num_tokens)
    sees = (place[None, :] <= place[:, None]) & (place[:, None] < structure.ends[None, :])
    return torch.from_numpy(sees).to(device)


class Dense:
    """All pairs, masked."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        heads_first = (t.transpose(0, 1)[None] for t in (query, key, value))
        out = functional.scaled_dot_product_attention(*heads_first, attn_mask=self._mask, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)


class CoreAttention(nn.Module):
    """The `core_attention` of Megatron's layer spec: hands a row's tensors to its layout."""

    def __init__(self, *, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self._scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any) -> Tensor:
        """[T, H, D], [T, K, D], [T, K, D] -> [T, H, D]; the layout is `packed_seq_params`."""
        layout: Layout = rest["packed_seq_params"]
        return layout.attend(layout.rotation.apply(query), layout.rotation.apply(key), value, scale=self._scale)
