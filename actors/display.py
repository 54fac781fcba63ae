"""Display: what a person sees while a command works; the only door to rich.

On a terminal there is a live bar with the time left; elsewhere the same facts come as plain lines.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from actors.run_dir import Summary
from actors.watcher import Watcher
from engine.events import Evaluated
from engine.metrics import StepMetrics
from engine.types import StepReport, TrajectoryGroup

PLAIN_EVERY_S = 5.0
"""Seconds between plain lines of the same phase, where there is no terminal."""


class Display(Watcher):
    """Follows one command. Writes to stderr; stdout is for what other programs read."""

    def __init__(self, subject: Path) -> None:
        self._console = Console(stderr=True)
        self._subject = subject
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._done = 0
        self._total: int | None = None
        self._last_line_s = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, name: str, total: int | None) -> None:
        self._name, self._done, self._total = name, 0, total
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total, facts="")
        self.note(f"{self._subject}: {name}" + (f", {total} steps" if total else ""))

    def sft_step(self, report: StepReport) -> None:
        self._advance(f"loss {report.loss:.4f}")

    def step(self, row: StepMetrics) -> None:
        rate = row.num_sampled_tokens / max(row.step_s + row.wait_s, 1e-9)
        self._advance(
            f"reward {row.reward:.3f}  success {row.success:.3f}  staleness {row.staleness}  {rate:.0f} tok/s  "
            f"calls {row.num_tool_calls_requested}/{row.num_tool_calls_executed}  forks {row.num_forks}  "
            f"kl {row.kl_rollout:.1e}",
            is_always=True,
            done=row.step,
        )

    def evaluated(self, event: Evaluated) -> None:
        facts = "  ".join(f"{name} {value:.3f}" for name, value in event.metrics.items())
        self.note(f"evaluation after step {event.step}: {facts}")

    def group(self, group: TrajectoryGroup) -> None:
        scores = [trajectory.reward.score for trajectory in group.trajectories]
        mean = sum(scores) / max(len(scores), 1)
        self._advance(f"{group.prompt.prompt_id}  reward {mean:.3f}  forks {group.num_forks}")

    def summary(self, summary: Summary) -> None:
        self.table(
            str(self._subject), {k: v for k, v in msgspec.structs.asdict(summary).items() if v not in (None, "")}
        )

    def note(self, text: str) -> None:
        """One line, now."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def table(self, title: str, rows: Mapping[str, Any]) -> None:
        """Names and values."""
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in rows.items():
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        self._console.print(table)

    def _advance(self, facts: str, *, is_always: bool = False, done: int | None = None) -> None:
        self._done = self._done + 1 if done is None else done
        if self._task is not None:
            self._progress.update(self._task, completed=self._done, facts=facts)
        now_s = time.monotonic()
        is_last = self._done == self._total
        if not self._console.is_terminal and (is_always or is_last or now_s - self._last_line_s >= PLAIN_EVERY_S):
            self._last_line_s = now_s
            of = f"/{self._total}" if self._total else ""
            self.note(f"{self._name} {self._done}{of}  {facts}")
