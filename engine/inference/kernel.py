"""KernelAttention: the attention seam in C, for float32 on a CPU; reads keys and values where they lie."""

# torch's stubs leave parts of many signatures open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import ctypes

import torch
from torch import Tensor

from engine.inference.attention import KVCache, Norms, Segments
from engine.inference.shape import ModelShape


class _Step(ctypes.Structure):
    """`step_t` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "keys", "values", "q_norm", "k_norm", "cosines", "sines")),
        *((name, ctypes.c_void_p) for name in ("slot_table", "table_rows", "starts", "counts")),
        *((name, ctypes.c_int64) for name in ("table_stride", "segments")),
        *((name, ctypes.c_int32) for name in ("heads", "kv_heads", "dim")),
        ("norm_eps", ctypes.c_float),
    )


class KernelAttention:
    """`PagedAttention` for float32 on a CPU, on the calling thread."""

    def __init__(
        self, library: ctypes.CDLL, shape: ModelShape, cache: KVCache, *, cosines: Tensor, sines: Tensor
    ) -> None:
        self._run = library.paged_attention
        self._shape = shape
        self._tables = (cosines.contiguous(), sines.contiguous())  # held: the kernel has their addresses
        self._cache = cache
        self._keys = [layer.data_ptr() for layer in cache.keys]
        self._values = [layer.data_ptr() for layer in cache.values]
        self._step = _Step(
            cosines=self._tables[0].data_ptr(),
            sines=self._tables[1].data_ptr(),
            heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            dim=shape.head_dim,
            norm_eps=shape.rms_eps,
        )
        self._pointer = ctypes.addressof(self._step)

    def begin(self, segments: Segments) -> None:
        self._segments = segments  # held: the kernel has the addresses of its arrays
        step = self._step
        step.slot_table = segments.table.ctypes.data
        step.table_stride = segments.table.shape[1]
        step.table_rows = segments.rows.ctypes.data
        step.starts = segments.starts.ctypes.data
        step.counts = segments.counts.ctypes.data
        step.segments = segments.counts.size

    def attend(self, layer: int, qkv: Tensor, norms: Norms) -> Tensor:
        # Padding rows are not written by the kernel, and must be finite.
        count = self._segments.positions.size
        make = torch.empty if qkv.shape[0] == count else torch.zeros
        out = make((qkv.shape[0], self._shape.query_size))
        step = self._step
        step.qkv = qkv.data_ptr()
        step.out = out.data_ptr()
        step.keys = self._keys[layer]
        step.values = self._values[layer]
        step.q_norm = None if norms.query is None else norms.query.data_ptr()
        step.k_norm = None if norms.key is None else norms.key.data_ptr()
        status = self._run(self._pointer)
        assert status == 0, "the number and size of heads were checked when the kernel was chosen"
        return out
