"""RunDir: the folder of one run, what lies in it, and whether a run may go on there.

runs/NAME/  config.json  metrics.jsonl  summary.json  journal/  checkpoints/  best/  logs/
"""

import contextlib
import fcntl
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import msgspec

from actors.config import Config
from engine import config as configuration
from engine.config import differences, to_json
from engine.errors import ConfigError

LOCK = ".lock"
WATCHING = "metrics."
"""Keys that say who is told of a run; they may change when it goes on."""

Status = Literal["finished", "interrupted", "failed"]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to: `summary.json`."""

    status: Status
    seed: int
    steps: int = 0
    wall_s: float = 0.0
    """Of all processes that worked on the run."""
    train_s: float = 0.0
    """In optimiser steps."""
    success_before: float | None = None
    """Greedy, on the evaluation data, before the first RL step; null without evaluation."""
    success_after: float | None = None
    success_control: float | None = None
    """Of the starting model after more supervised steps for as long as RL took; null without a control."""
    num_tool_calls_requested: int = 0
    num_tool_calls_executed: int = 0
    journal_s: float = 0.0
    """That the last process spent in writing the journal."""
    error: str = ""


class RunDir:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best"

    @property
    def summary(self) -> Summary | None:
        """None for a run that never came to an orderly end."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.path / "summary.json").read_bytes(), type=Summary)
        return None

    @property
    def is_finished(self) -> bool:
        summary = self.summary
        return summary is not None and summary.status == "finished"

    @property
    def config(self) -> Config | None:
        """The configuration the run was started with; None for a folder that holds no run."""
        try:
            raw: dict[str, Any] = msgspec.json.decode((self.path / "config.json").read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror} - at $.run.dir") from None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self.path / 'config.json'}: {error}") from None
        return configuration.decode(raw, Config, source=str(self.path / "config.json"))

    def write_config(self, config: Config) -> None:
        write_whole(self.path / "config.json", to_json(config))

    def write_summary(self, summary: Summary) -> None:
        write_whole(self.path / "summary.json", msgspec.json.format(msgspec.json.encode(summary), indent=2))

    @contextlib.contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the run for this process. Raises `ConfigError` where another one works on it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("w")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror} - at $.run.dir") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"{self.path}: another process works on this run") from None
            yield

    def clear(self) -> None:
        """Remove everything of an earlier run but the lock, which the caller holds."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def choose(config: Config, *, stem: str, fresh: bool) -> RunDir:
    """The folder for this run: a new one, or that of an unfinished run with the same configuration.

    A named run that is unfinished and differs is refused, with the keys; `fresh` starts anew in its folder. Without
    `run.name` it is `stem-N`: the latest one where it may go on, else the next number.
    """
    base = Path(config.run.dir)
    if config.run.name is not None:
        chosen = RunDir(base / config.run.name)
        if not fresh:
            check_same(chosen, config)
        return chosen
    numbers = [int(m[1]) for p in base.glob(f"{stem}-*") if (m := re.fullmatch(rf"{re.escape(stem)}-(\d+)", p.name))]
    latest = RunDir(base / f"{stem}-{max(numbers, default=0)}")
    before = latest.config if numbers else None
    if before is not None and not fresh and not latest.is_finished and not _differences(before, config):
        return latest
    return RunDir(base / f"{stem}-{max(numbers, default=0) + 1}")


def check_same(run: RunDir, config: Config) -> None:
    """Raises `ConfigError`, with the keys, where an unfinished run lies there and differs."""
    before = run.config
    if before is None or run.is_finished:
        return
    if keys := _differences(before, config):
        raise ConfigError(
            f"{run.path}: an unfinished run with another configuration ({', '.join(keys)}); "
            "use --fresh to start it anew, or another run.name"
        )


def _differences(before: Config, config: Config) -> list[str]:
    return [key for key in differences(before, config) if not key.startswith(WATCHING)]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
