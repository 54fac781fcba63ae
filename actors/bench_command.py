"""What `arpo bench` does: measure one bench or all, show tables, write figures and a page where they are wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.bench.harness import BenchReport, run_bench
from actors.bench.page import write_page
from actors.display import Display


def bench(names: Sequence[str], *, json_file: Path | None, html_file: Path | None, **options: Any) -> None:
    """`options` are those of `run_bench`. Raises `ConfigError` for what cannot be measured as it was asked for."""
    reports: list[BenchReport] = []
    try:
        with Display(Path()) as display:
            for name in names:
                report = run_bench(name, on_progress=display.note, **options)
                reports.append(report)
                for arm, found in report.arms.items():
                    display.table(f"{name}: {arm}, {len(found.records)} times, median (min to max)", found.rows)
                display.table(name, report.figures)
            display.table("seconds", {report.bench: round(report.wall_s) for report in reports})
    finally:  # what was measured is worth keeping, whatever ended the rest
        if reports:
            _write(reports, json_file=json_file, html_file=html_file)


def _write(reports: Sequence[BenchReport], *, json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        content = reports[0] if len(reports) == 1 else reports
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
    if html_file is not None:
        write_page(reports, html_file)
