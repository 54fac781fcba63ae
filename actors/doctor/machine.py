"""Machine: what this machine is and has, asked without allocating anything of it.

Nothing heavy is imported: versions are read from what is installed, and torch, where there may be a GPU, is asked in a
process of its own, which leaves no CUDA context behind in this one.
"""

import os
import platform
import resource
import shutil
import subprocess
import sys
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import psutil

from tools.python_config import PythonConfig
from tools.python_isolation import Isolation, examine_isolation

SHARED_MEMORY = Path("/dev/shm")
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""One of these is there wherever torch may find a GPU."""
PROBE_S = 120.0
_ASK_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
print(json.dumps([{"name": gpu.name, "num_bytes": gpu.total_memory} for gpu in gpus]))
"""
_ASK_SGLANG = """
import importlib.metadata
print(importlib.metadata.version("sglang"))
"""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One device as torch sees it."""

    name: str
    num_bytes: int


class Machine:
    """This machine. What takes long is asked when it is first wanted; a test overrides what shall be otherwise."""

    @cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        if not any(Path(path).exists() for path in DRIVERS):
            return ()
        answer = _asked(sys.executable, _ASK_TORCH)
        try:
            return msgspec.json.decode(answer, type=tuple[Gpu, ...])
        except msgspec.DecodeError:
            return ()

    @cached_property
    def memory_bytes(self) -> int:
        """Of the whole machine."""
        return psutil.virtual_memory().total

    @cached_property
    def max_open_files(self) -> int:
        """The soft limit: what a process may have open at once."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    @cached_property
    def num_cores(self) -> int:
        return os.cpu_count() or 1

    @property
    def python(self) -> str:
        return platform.python_version()

    def version(self, distribution: str) -> str | None:
        """Of what is installed in this environment."""
        try:
            return version(distribution)
        except PackageNotFoundError:
            return None

    def sglang_version(self, python: str | None) -> str | None:
        """Of SGLang in another interpreter's environment; None where there is no such interpreter, or no SGLang."""
        if python is None:
            return self.version("sglang")
        return _asked(python, _ASK_SGLANG).strip() or None

    def has_variable(self, name: str) -> bool:
        """Whether the environment holds something under this name."""
        return bool(os.environ.get(name, "").strip())

    def isolation(self, python: PythonConfig) -> Isolation:
        """What programs of the `python` tool get. Raises `ToolError` where its interpreter cannot be run."""
        return examine_isolation(python)

    def free_bytes(self, path: str | Path) -> int | None:
        """Room on the disk that `path` lies on, or will lie on; None where no folder above it is there."""
        path = Path(path)
        there = next((p for p in (path, *path.absolute().parents) if p.exists()), None)
        return None if there is None or there == Path("/") != path else shutil.disk_usage(there).free

    def exists(self, path: str | Path) -> bool:
        return Path(path).exists()


def _asked(python: str, code: str) -> str:
    """What an interpreter prints; empty where it is not there, or fails."""
    try:
        process = subprocess.run(
            [python, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout if process.returncode == 0 else ""
