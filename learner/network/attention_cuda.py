"""Attention of packed rows on CUDA: FlexAttention for trees, flash-attn for rows without a fork.

Axes: T tokens of the row, H query heads, K key heads, D head size.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from learner.packing.tree_pack import Structure


@cache
def _has_flash() -> bool:
    return find_spec("flash_attn") is not None


def best(structure: Structure, dtype: torch.dtype) -> Literal["flash", "flex"]:
    """What is fastest for this row with what is installed; flash-attn computes in half precision alone."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return "flash" if is_half and not structure.rectangles and _has_flash() else "flex"


@cache
def _compiled_flex() -> Any:
    """One kernel for rows of all lengths."""
    return torch.compile(flex_attention, dynamic=True)


class Flex:
    """FlexAttention over the blocks of 128 x 128 in which any token sees another one. Compiled on CUDA alone."""

    def __init__(self, structure: Structure, device: torch.device) -> None:
        ends = torch.from_numpy(structure.ends).to(device)
        length = structure.num_tokens

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends[key])

        self._mask = create_block_mask(sees, B=None, H=None, Q_LEN=length, KV_LEN=length, device=device)
        self._attend = _compiled_flex() if device.type == "cuda" else flex_attention

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        heads_first = (t.transpose(0, 1)[None] for t in (query, key, value))
        out = self._attend(*heads_first, block_mask=self._mask, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)


class Flash:
    """flash-attn's kernel for sequences of different lengths; half precision, rows without a fork."""

    def __init__(self, structure: Structure, device: torch.device) -> None:
        from flash_attn import flash_attn_varlen_func

        if structure.rectangles:
            raise ValueError("flash-attn computes rows without a fork; this one holds a tree")
        lengths = [stop - start for start, stop in structure.chains]
        self._offsets = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)).to(device)
        self._longest = max(lengths)
        self._attend = flash_attn_varlen_func

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        return self._attend(
            query,
            key,
            value,
            cu_seqlens_q=self._offsets,
            cu_seqlens_k=self._offsets,
            max_seqlen_q=self._longest,
            max_seqlen_k=self._longest,
            softmax_scale=scale,
            causal=True,
        )
