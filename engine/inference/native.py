"""The C kernels: compiled once for this machine by the system's C compiler, loaded through ctypes.

The library lies in the user's cache folder under a hash of sources, flags, compiler and processor, so another machine
that shares the folder builds its own. Where there is no compiler, or it fails, one log line says so and torch does the
same work.
"""

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

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_UNITS = ("paged_attention.c", "decode_ops.c")
_INCLUDED = ("exponential.c",)
# What -ffast-math would give, less the flush-to-zero start-up code that it links into a shared library.
_FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"),
    *("-fassociative-math", "-freciprocal-math"),
    # The loops are long enough to be worth the lower clock of wide vectors.
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)
_BUILD_TIMEOUT_S = 120.0


@cache
def load_native() -> "ctypes.CDLL | None":
    """The compiled library, built on first use; None, after one log line, where it cannot be had."""
    try:
        path = _build()
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        logger.warning("no C kernels, torch is used instead (several times slower on a CPU): %s", lines[0])
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.paged_attention.argtypes = (pointer,)
    library.paged_attention.restype = ctypes.c_int
    library.rms_norm.argtypes = (pointer, pointer, pointer, size, size, ctypes.c_float)
    library.gated_silu.argtypes = (pointer, pointer, size, size)
    library.draw.argtypes = (pointer, pointer, pointer, size, size, pointer, pointer, pointer)
    for function in (library.rms_norm, library.gated_silu, library.draw):
        function.restype = None
    return library


def _build() -> Path:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc, gcc, clang) on PATH")
    sources = [(_FOLDER / name).read_text(encoding="utf-8") for name in (*_UNITS, *_INCLUDED)]
    identity = [*sources, " ".join(_FLAGS), _compiler_version(compiler), _processor()]
    digest = hashlib.blake2b("\0".join(identity).encode(), digest_size=12).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arpo-engine"
    target = folder / f"kernels-{digest}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / target.name
        command = [compiler, *_FLAGS, "-o", str(built), *(str(_FOLDER / name) for name in _UNITS), "-lm"]
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
