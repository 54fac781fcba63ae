"""The attention seam: each new token attends to its sequence's slots 0 to its own position, wherever they lie.

One call does what lies between the QKV projection and the output projection: query and key norm, RoPE, the write of
the new keys and values, attention. Two implementations: this one in torch, on any device, which is the reference; and
`kernel.KernelAttention`, C on a CPU, which reads keys and values where they lie.

Axes: N new tokens of the step, S segments, R rows of the slot table, L layers.
"""

# torch's stubs leave parts of many signatures open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import ctypes
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.inference.shape import ModelShape, inverse_frequencies
from engine.types import Int32

MAX_NATIVE_HEADS = 64
MAX_NATIVE_HEAD_DIM = 256


class Segments:
    """What one step computes: runs of consecutive new tokens, each of one sequence, laid end to end."""

    def __init__(self, table: Int32, *, rows: Int32, starts: Int32, counts: Int32) -> None:
        self.table = table
        """[R, width]: slot of each position of each sequence; filled up to the new tokens."""
        self.rows = rows
        """[S] row of the table."""
        self.starts = starts
        """[S] position of the first new token."""
        self.counts = counts
        """[S] new tokens, at least 1."""

    @cached_property
    def positions(self) -> Int32:
        """[N] position of each new token in its sequence."""
        if self.counts.size == int(self.counts.sum()):
            return self.starts
        ends = np.cumsum(self.counts, dtype=np.int32)
        return np.arange(ends[-1], dtype=np.int32) + np.repeat(self.starts - (ends - self.counts), self.counts)

    @cached_property
    def table_rows(self) -> Int32:
        """[N] row of the table of each new token."""
        if self.positions is self.starts:
            return self.rows
        return np.repeat(self.rows, self.counts)


class KVCache(NamedTuple):
    """Keys and values of every slot, [L, slots, kv heads, head dim] each."""

    keys: Tensor
    values: Tensor


class Norms(NamedTuple):
    """Weights of one layer's query and key norm, [head dim] each; None where the model has none."""

    query: Tensor | None
    key: Tensor | None


class PagedAttention(Protocol):
    """One implementation, bound to one `KVCache`."""

    def begin(self, segments: Segments) -> None:
        """Say what the following calls of `attend` are about."""
        ...

    def attend(self, layer: int, qkv: Tensor, norms: Norms) -> Tensor:
        """[N or more, query + 2 kv sizes] projections, which may be overwritten, to [same, query size] results.

        Rows behind the N-th are padding: their results mean nothing, but are finite.
        """
        ...


def make_kv_cache(shape: ModelShape, *, num_slots: int, device: torch.device, dtype: torch.dtype) -> KVCache:
    """Zeros, because a padded gather multiplies slots nobody wrote by a weight of zero."""
    size = (shape.num_layers, num_slots, shape.num_kv_heads, shape.head_dim)
    return KVCache(torch.zeros(size, device=device, dtype=dtype), torch.zeros(size, device=device, dtype=dtype))


def rope_tables(shape: ModelShape, *, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles, float32 [positions, head dim / 2] each (RoFormer, eq. 15)."""
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), torch.from_numpy(inverse_frequencies(shape)))
    return angles.cos().to(device), angles.sin().to(device)


def make_attention(
    shape: ModelShape, cache: KVCache, *, num_positions: int, native: ctypes.CDLL | None
) -> PagedAttention:
    """The C kernel where the library is given and has room for the heads, torch otherwise."""
    cosines, sines = rope_tables(shape, num_positions=num_positions, device=cache.keys.device)
    if native is not None and shape.num_heads <= MAX_NATIVE_HEADS and shape.head_dim <= MAX_NATIVE_HEAD_DIM:
        from engine.inference.kernel import KernelAttention

        return KernelAttention(native, shape, cache, cosines=cosines, sines=sines)
    return TorchAttention(shape, cache, cosines=cosines, sines=sines)


class TorchAttention:
    """The reference: gathers each sequence's keys and values, then scaled-dot-product attention."""

    def __init__(self, shape: ModelShape, cache: KVCache, *, cosines: Tensor, sines: Tensor) -> None:
        self._shape = shape
        self._cache = cache
        self._cosines = torch.cat([cosines, cosines], dim=-1)
        self._sines = torch.cat([sines, sines], dim=-1)

    def begin(self, segments: Segments) -> None:
        device = self._cache.keys.device
        positions = segments.positions
        self._count = positions.size
        index = torch.from_numpy(positions.astype(np.int64)).to(device)
        self._cos, self._sin = self._cosines[index, None, :], self._sines[index, None, :]
        self._new_slots = self._slots(segments.table[segments.table_rows, positions])
        ends = np.cumsum(segments.counts)
        self._runs: list[tuple[slice, Tensor, Tensor]] = []
        single = segments.counts == 1
        if single.any():
            # Sequences with one new token each are one padded batch.
            last = segments.starts[single]
            width = int(last.max()) + 1
            table = segments.table[segments.rows[single], :width]
            visible = np.arange(width) <= last[:, None]
            self._single = torch.from_numpy(ends[single] - 1).to(device)
            self._single_slots = self._slots(np.where(visible, table, 0))
            self._single_visible = torch.from_numpy(visible).to(device)[:, None, None, :]
        else:
            self._single = None
        for s in np.flatnonzero(~single).tolist():
            start, count = int(segments.starts[s]), int(segments.counts[s])
            visible = np.arange(start + count) <= (start + np.arange(count))[:, None]
            slots = self._slots(segments.table[segments.rows[s], : start + count])
            run = slice(int(ends[s]) - count, int(ends[s]))
            self._runs.append((run, slots, torch.from_numpy(visible).to(device)))

    def _slots(self, slots: Int32) -> Tensor:
        return torch.from_numpy(slots.astype(np.int64)).to(self._cache.keys.device)

    def attend(self, layer: int, qkv: Tensor, norms: Norms) -> Tensor:
        shape = self._shape
        n = self._count
        query, key, value = (
            qkv[:n].view(n, -1, shape.head_dim).split((shape.num_heads, shape.num_kv_heads, shape.num_kv_heads), dim=1)
        )
        query, key = self._prepare(query, norms.query), self._prepare(key, norms.key)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_copy_(0, self._new_slots, key)
        values.index_copy_(0, self._new_slots, value)
        out = query.new_zeros((qkv.shape[0], shape.num_heads, shape.head_dim))
        if self._single is not None:
            k, v = keys[self._single_slots].transpose(1, 2), values[self._single_slots].transpose(1, 2)
            got = _sdpa(query[self._single].unsqueeze(2), k, v, self._single_visible)
            out.index_copy_(0, self._single, got.squeeze(2))
        for run, slots, visible in self._runs:
            k, v = keys[slots].transpose(0, 1), values[slots].transpose(0, 1)
            out[run] = _sdpa(query[run].transpose(0, 1)[None], k[None], v[None], visible)[0].transpose(0, 1)
        return out.view(qkv.shape[0], shape.query_size)

    def _prepare(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            x = functional.rms_norm(x, (self._shape.head_dim,), weight, self._shape.rms_eps)
        low, high = x.chunk(2, dim=-1)
        return (x * self._cos + torch.cat([-high, low], dim=-1) * self._sin).to(x.dtype)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, enable_gqa=True)
