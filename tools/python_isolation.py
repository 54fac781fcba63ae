"""How far programs are kept apart on this machine, found out by trying and said in plain words."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.errors import ToolError
from tools.python_config import PythonConfig
from tools.sandbox import BOOT

_FOLDER = str(Path(__file__).with_name("sandbox"))
_TRIAL_S = 60.0


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """What a program gets. Produced by `tools.sandbox`, consumed by logs and `arpo doctor`."""

    isolation: str
    """A degree: see `tools.sandbox.isolation`."""
    reason: str = ""
    """Why it is not `namespaces`, where it is not."""
    landlock: int = 0
    """Version of the kernel's Landlock; 0 is none."""

    @property
    def is_full(self) -> bool:
        return self.isolation == "namespaces"

    def __str__(self) -> str:
        """A sentence without its end."""
        if self.is_full:
            return "programs run isolated, each in namespaces of its own"
        if self.isolation == "none":
            return "programs are not isolated: they may do whatever the user of this process may"
        files = "read no file but libraries" if self.landlock else "read every file that the user of this process may"
        return f"programs are not isolated ({self.reason}): they have no network and {files}, but share this system"


def sandbox_command(config: PythonConfig, module: str, *arguments: str) -> tuple[str, ...]:
    """What starts a module of `tools.sandbox` in the interpreter of a configuration."""
    return (config.interpreter or sys.executable, "-I", "-c", BOOT, _FOLDER, module, *arguments)


def examine_isolation(config: PythonConfig) -> Isolation:
    """Try it, in a process of its own, which takes a tenth of a second. Raises `ToolError` where that cannot be."""
    if config.isolation != "auto":
        return Isolation(isolation=config.isolation, reason="isolation is not 'auto'", landlock=0)
    command = sandbox_command(config, "probe", msgspec.json.encode(config.readable).decode())
    return msgspec.json.decode(_answer(command), type=Isolation)


def _answer(command: Sequence[str]) -> str:
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TRIAL_S, env={}, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"python: cannot try {command[0]}: {error}") from None
    if process.returncode:
        last = (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]
        raise ToolError(f"python: cannot try {command[0]}: {last}")
    return process.stdout
