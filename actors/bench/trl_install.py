"""TRL, installed on request beside what is there: in the user's cache, on the path of its own process alone."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from actors.materials import whole_folder
from engine.errors import ConfigError

LOCK = Path(__file__).with_name("trl.lock")
_INSTALL_TIMEOUT_S = 600.0
_CHECK_TIMEOUT_S = 120.0


def trl_folder(*, say: Callable[[str], None], cache: Path | None = None, lock: Path = LOCK) -> Path:
    """The folder that has TRL and what it needs besides this environment, whose torch and transformers it shares.

    It is made where it is missing, whole or not at all; its name is that of what the lock says and of this Python.
    Raises `ConfigError` where TRL cannot be had, or does not start.
    """
    version = ".".join(map(str, sys.version_info[:2]))
    digest = hashlib.blake2b(lock.read_bytes() + version.encode(), digest_size=6).hexdigest()
    folder = (cache or _cache()) / f"trl-{digest}"
    if not folder.exists():
        say(f"installing TRL into {folder}")
        with whole_folder(folder) as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
            # Nothing that this environment has is installed again: both sides run on the same torch.
            _run([*pip, "--no-deps", "--target", str(scratch), "-r", str(lock)], timeout_s=_INSTALL_TIMEOUT_S)
    check = "from trl import GRPOConfig, GRPOTrainer"
    _run([sys.executable, "-c", check], timeout_s=_CHECK_TIMEOUT_S, environment=with_trl(folder))
    return folder


def with_trl(folder: Path, *, threads: int = 1) -> dict[str, str]:
    """The environment of a process that finds TRL in the folder, asks no network and uses so many threads."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**os.environ, **numbers, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arpo-engine"


def _run(command: list[str], *, timeout_s: float, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"--with-trl: no TRL within {timeout_s:g} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise ConfigError(f"--with-trl: {last}")
