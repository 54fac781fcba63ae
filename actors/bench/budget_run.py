"""One run of `tool-budget`: `arpo train` in a process of its own, under a deadline, and what its events say."""

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Self

import msgspec

from actors import tether
from actors.bench.bench import Record
from actors.process import environment, tail
from actors.run_dir import RunDir
from engine import journal
from engine.errors import LearnerError, StalledError
from engine.events import AnyEvent, Evaluated
from engine.metrics import StepMetrics

LIMIT_S = 900.0
"""Of one run; one that has not ended then hangs."""
GRACE_S = 15.0
"""How long a run that is ended may take; its tether gives it less."""
TOTALS = {
    "executed": "num_tool_calls_executed",
    "requested": "num_tool_calls_requested",
    "tokens": "num_sampled_tokens",
    "trajectories": "num_trajectories",
    "forks": "num_forks",
    "considered": "num_forks_considered",
    "wanted": "num_forks_wanted",
    "groups": "num_groups",
    "refused": "num_refused",
}
"""Names in a record, and the columns of `metrics.jsonl` that they add up."""


class Leash:
    """Runs hang on it: all of them end when it is cut, and when this process ends, however that happens.

    A context manager; leaving cuts it.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    @property
    def descriptor(self) -> int:
        """The end that a tether holds."""
        return self._theirs.fileno()

    @property
    def is_cut(self) -> bool:
        return self._ours.fileno() < 0

    def cut(self) -> None:
        self._ours.close()
        self._theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()


def train_once(
    config: Path, overlay: Sequence[str], *, folder: Path, name: str, leash: Leash, limit_s: float = LIMIT_S
) -> Record:
    """Train in `folder`/`name`, or go on there where an earlier bench was interrupted; the folder goes in the end.

    Raises `StalledError` behind the deadline, `LearnerError` where the run failed or its leash was cut, each with the
    end of its output.
    """
    run = RunDir(folder / name)
    log = folder / f"{name}.log"
    if not run.is_finished:
        _train([str(config), *overlay, f"run.dir={folder}", f"run.name={name}"], log=log, leash=leash, limit_s=limit_s)
    rows = [msgspec.json.decode(line, type=StepMetrics) for line in run.metrics.read_bytes().splitlines()]
    record = record_of(rows, journal.read(run.journal))
    shutil.rmtree(run.path)
    log.unlink(missing_ok=True)
    return record


def _train(arguments: Sequence[str], *, log: Path, leash: Leash, limit_s: float) -> None:
    if leash.is_cut:
        raise LearnerError("a run was not begun: its leash is cut")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, tether.__file__, str(leash.descriptor), sys.executable, "-m", "actors.cli", "train"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(leash.descriptor,),
            env=environment(threads=1),
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise StalledError(_told(f"a run did not end within {limit_s:g} s", log)) from None
        finally:
            _end(process)
    if code or leash.is_cut:
        raise LearnerError(_told(f"a run ended with exit code {code}", log))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """In order where it can be had; its own processes end with it."""
    for help_it in (process.terminate, process.kill):
        if process.poll() is None:
            help_it()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)


def _told(what: str, log: Path) -> str:
    return "\n  ".join([f"{what}; the end of {log}:", *tail(log)])


def record_of(rows: Sequence[StepMetrics], events: Iterable[AnyEvent]) -> Record:
    """Totals of a run; and at each evaluation its success, and the totals up to the step that it measured."""
    measured = {event.step: event.metrics["success"] for event in events if isinstance(event, Evaluated)}
    sums = {name: [0, *accumulate(getattr(row, column) for row in rows)] for name, column in TOTALS.items()}
    record: Record = {name: float(sums[name][-1]) for name in TOTALS}
    record |= {"steps": float(len(rows)), "success": measured[max(measured)], "success_before": measured[0]}
    record["wall_s"] = rows[-1].t - (rows[0].t - rows[0].step_s - rows[0].wait_s)
    for step, success in measured.items():
        record[f"success@{step}"] = success
        record |= {f"{name}@{step}": float(sums[name][step]) for name in ("executed", "requested", "tokens")}
    return record
