"""KernelAttention: the attention seam in C, compiled once for this machine by the system's C compiler.

The library lies in the user's cache folder under a hash of source, flags, compiler and processor, so another machine
that shares the folder builds its own. Where there is no compiler, or it fails, one log line says so and
`attention.TorchAttention` is used.
"""

# torch's stubs leave parts of many signatures open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from engine.inference.attention import KVCache, Norms, Segments
from engine.inference.shape import ModelShape

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("paged_attention.c")
# What -ffast-math would give, less the flush-to-zero start-up code that it links into a shared library.
_FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"),
    *("-fassociative-math", "-freciprocal-math"),
)
_BUILD_TIMEOUT_S = 120.0


class _Step(ctypes.Structure):
    """`step_t` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "keys", "values", "q_norm", "k_norm", "cosines", "sines")),
        *((name, ctypes.c_void_p) for name in ("slot_table", "table_rows", "starts", "counts")),
        *((name, ctypes.c_int64) for name in ("table_stride", "segments")),
        *((name, ctypes.c_int32) for name in ("heads", "kv_heads", "dim")),
        ("norm_eps", ctypes.c_float),
    )


@cache
def load_kernel() -> "ctypes.CDLL | None":
    """The compiled library, built on first use; None, after one log line, where it cannot be had."""
    try:
        path = _build()
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or error
        logger.warning("no C attention kernel, torch is used (several times slower on a CPU): %s", detail)
        return None
    library.paged_attention.argtypes = (ctypes.POINTER(_Step),)
    library.paged_attention.restype = ctypes.c_int
    return library


def _build() -> Path:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc, gcc, clang) on PATH")
    identity = [_SOURCE.read_text(encoding="utf-8"), " ".join(_FLAGS), _compiler_version(compiler), _processor()]
    digest = hashlib.blake2b("\0".join(identity).encode(), digest_size=12).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arpo-engine"
    target = folder / f"paged_attention-{digest}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / target.name
        command = [compiler, *_FLAGS, "-o", str(built), str(_SOURCE)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
        built.replace(target)  # atomic: processes that build at the same time do not see halves
    return target


def _compiler_version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=30.0)
    return f"{compiler} {done.stdout}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return f"{platform.machine()} {platform.processor()}"


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
        self._pointer = ctypes.byref(self._step)

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
        assert status == 0, "the head dimension was checked when the kernel was chosen"
        return out
