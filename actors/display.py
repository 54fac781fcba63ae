"""Display: what a person sees while a command works; the only door to rich.

On a terminal there is a live dashboard with the time left; elsewhere the same facts come as plain lines.
"""

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actors import dashboard
from actors.plain_lines import PlainLines
from actors.progress import Clock, Progress
from actors.quantities import label, quantity
from actors.run_dir import Summary
from actors.watcher import Watcher
from engine.events import ControlEvaluated, Evaluated
from engine.metrics import StepMetrics
from engine.reports import StepReport
from engine.types import TrajectoryGroup

REFRESHES_PER_S = 5.0
PREPARATION = "preparation"
MARGIN = 2
"""Columns that stay free, so that what a terminal echoes behind the last line, such as ^C, does not wrap."""


class Display(Watcher):
    """Follows one command. Writes to stderr; stdout is for what other programs read."""

    def __init__(self, subject: Path, *, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        # What is no terminal gets no control characters, whatever the environment says about colours.
        self._console = console or Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False)
        self._subject = str(subject)
        self._progress = Progress(clock)
        self._lock = threading.Lock()
        """Of the progress: the thread that refreshes the dashboard reads it."""
        self._plain = None if self.is_live else PlainLines(self._progress, subject=self._subject, say=self.note)
        self._lines: Watcher = self._plain or Watcher()
        self._live: Live | None = None
        self._diverted: list[logging.StreamHandler[TextIO]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.finish(is_stopped=kind is not None)

    @property
    def is_live(self) -> bool:
        """There is a terminal, and it can show the dashboard."""
        console = self._console
        return console.is_terminal and console.is_interactive and not console.options.ascii_only

    def preparing(self) -> None:
        """It takes a while until the first phase. Nothing is left to see of it where the command is refused then."""
        if self.is_live:
            self.phase(PREPARATION, None)

    # -- what the command tells -------------------------------------------------------------------------------

    def phase(self, name: str, total: int | None) -> None:
        with self._lock:
            self._progress.phase(name, total)
        self._lines.phase(name, total)
        if self.is_live and self._live is None:
            self._start()

    def resumed(self, rows: Sequence[StepMetrics], evaluations: Sequence[Evaluated]) -> None:
        with self._lock:
            self._progress.resumed(rows, evaluations)
        self._lines.resumed(rows, evaluations)

    def sft_step(self, report: StepReport) -> None:
        with self._lock:
            self._progress.sft_step(report)
        self._lines.sft_step(report)

    def step(self, row: StepMetrics) -> None:
        with self._lock:
            self._progress.step(row)
        self._lines.step(row)

    def group(self, group: TrajectoryGroup) -> None:
        with self._lock:
            self._progress.group(group)
        self._lines.group(group)

    def verdict(self, is_correct: bool | None) -> None:
        with self._lock:
            self._progress.verdict(is_correct)
        self._lines.verdict(is_correct)

    def evaluated(self, event: Evaluated) -> None:
        with self._lock:
            self._progress.evaluated(event)
        self._lines.evaluated(event)

    def control_evaluated(self, event: ControlEvaluated) -> None:
        with self._lock:
            self._progress.control_evaluated(event)
        self._lines.control_evaluated(event)

    # -- what stays -------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """One line, now; above the dashboard where there is one."""
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def summary(self, summary: Summary) -> None:
        """What the run came to."""
        values = {k: v for k, v in msgspec.structs.asdict(summary).items() if v not in (None, "")}
        self._table(self._subject, [(label(name), quantity(name, value)) for name, value in values.items()])

    def table(self, title: str, rows: Mapping[str, Any]) -> None:
        """Names and values."""
        self._table(title, [(name, quantity(name, value)) for name, value in rows.items()])

    def grid(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of several columns: texts in the first two, numbers in the others."""
        self.finish()
        if self.is_live:
            self._console.line()
        table = Table(title=Text(title, "bold"), title_justify="left")
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="left" if place < 2 else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)

    def finish(self, *, is_stopped: bool = False) -> None:
        """The last phase is over, or was stopped in the middle; the dashboard stays on the screen as it is then."""
        with self._lock:
            self._progress.finish(is_stopped=is_stopped)
        if self._plain is not None:
            self._plain.finish()
        if self._live is not None:
            self._live.transient = is_stopped and [phase.name for phase in self._progress.phases] == [PREPARATION]
            self._live.stop()
            self._live = None
            while self._diverted:
                self._diverted.pop().setStream(sys.stderr)

    def _table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        self.finish()
        if self.is_live:
            self._console.line()
        table = Table(title=Text(title, "bold"), title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        self._console.print(table)

    # -- the dashboard ----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._live = Live(
            get_renderable=self._frame,
            console=self._console,
            refresh_per_second=REFRESHES_PER_S,
            redirect_stdout=False,
        )
        direct = sys.stderr
        self._live.start(refresh=True)
        # A hidden cursor would stay hidden if the process were killed.
        self._console.show_cursor(True)
        # Handlers hold on to the stream they were made with; what they write has to go above the dashboard.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is direct:
                handler.setStream(sys.stderr)
                self._diverted.append(handler)

    def _frame(self) -> Text:
        with self._lock:
            height = None if self._progress.current is None else self._console.height - 1
            lines = dashboard.frame(
                self._progress, subject=self._subject, width=self._console.width - MARGIN, height=height
            )
        texts = [Text.assemble(*line, no_wrap=True, overflow="ellipsis") for line in lines]
        return Text("\n", no_wrap=True, overflow="ellipsis").join(texts)
