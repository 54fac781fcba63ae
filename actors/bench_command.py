"""What `arpo bench` does: measure one bench or all, show tables, write figures and a page where they are wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.bench.harness import run_bench
from actors.bench.page import write_page
from actors.display import Display


def bench(names: Sequence[str], *, json_file: Path | None, html_file: Path | None, **options: Any) -> None:
    """`options` are those of `run_bench`. Raises `ConfigError` for what cannot be measured as it was asked for."""
    with Display(Path()) as display:
        reports = [run_bench(name, on_progress=display.note, **options) for name in names]
        for report in reports:
            for arm, found in report.arms.items():
                display.table(f"{report.bench}: {arm}, {len(found.records)} times, median (min to max)", found.rows)
            display.table(report.bench, report.figures)
        display.table("seconds", {report.bench: round(report.wall_s) for report in reports})
    if json_file is not None:
        content = reports[0] if len(reports) == 1 else reports
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
    if html_file is not None:
        write_page(reports, html_file)
