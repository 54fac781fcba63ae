"""A page for any bench: its figures, its arms with their spread, and plots; one file that needs nothing but itself."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from actors.bench import budget_sections
from actors.bench.bench import Records
from actors.bench.harness import BenchReport
from actors.quantities import quantity
from actors.report.charts import COLOURS, Bar, Bars
from actors.report.plots import draw
from actors.report.section import Figure, Section, Table, number
from actors.run_dir import write_whole

SECTIONS: Mapping[str, Callable[[Records], Sequence[Section]]] = {"tool-budget": budget_sections.sections}
"""What a bench has to tell besides medians."""
MAX_PLOTS = 8
HEAD = '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>arpo bench</title>\n<style>'


def write_page(reports: Sequence[BenchReport], target: Path) -> None:
    """Write the page of these reports, whole or not at all."""
    write_whole(target, page(reports).encode())


def page(reports: Sequence[BenchReport]) -> str:
    """The HTML; all text in it is escaped."""
    style = (files("actors.report") / "page.css").read_text(encoding="utf-8")
    machine = reports[0].machine
    told = f"{machine.cpu}, {machine.cores} cores, torch {machine.torch}, OMP_NUM_THREADS={machine.omp_threads}"
    body = "\n".join(_section(section) for report in reports for section in _sections(report))
    title = ", ".join(report.bench for report in reports)
    header = f'<header>\n<p class="over">arpo bench</p>\n<h1>{escape(title)}</h1>\n<p class="sub">{escape(told)}</p>\n'
    return f"{HEAD}\n{style}\n</style>\n</head>\n<body>\n<main>\n{header}</header>\n{body}\n</main>\n</body>\n</html>\n"


def _sections(report: BenchReport) -> list[Section]:
    own = SECTIONS.get(report.bench, lambda records: ())
    records = {arm: found.records for arm, found in report.arms.items()}
    return [_figures(report), *own(records), _arms(report)]


def _figures(report: BenchReport) -> Section:
    rows = [(name, quantity(name, value)) for name, value in report.figures.items()]
    skipped = [f"{arm} was not run: {reason}." for arm, reason in report.skipped.items()]
    return Section(
        key=f"{report.bench}-figures",
        title=report.bench,
        sentences=skipped,
        tables=[Table(columns=("figure", "value"), rows=rows)],
    )


def _arms(report: BenchReport) -> Section:
    """Every name that arms have in common, as a plot: medians, from the smallest to the largest."""
    names = dict.fromkeys(name for arm in report.arms.values() for name in arm.median if "@" not in name)
    shared = [name for name in names if sum(name in arm.median for arm in report.arms.values()) > 1]
    rows = [
        (
            arm,
            f"{len(found.records)}",
            name,
            number(found.median[name]),
            number(found.min[name]),
            number(found.max[name]),
        )
        for arm, found in report.arms.items()
        for name in found.rows
    ]
    return Section(
        key=f"{report.bench}-arms",
        title=f"{report.bench}: every arm",
        sentences=[],
        figures=[Figure(svg=_plot(report, name)) for name in shared[:MAX_PLOTS]],
        tables=[Table(columns=("arm", "times", "what", "median", "min", "max"), rows=rows, num_text_columns=1)],
    )


def _plot(report: BenchReport, name: str) -> str:
    having = [(arm, found) for arm, found in report.arms.items() if name in found.median]
    bars = [
        Bar(
            label=arm,
            amounts=[found.median[name]],
            low=found.min[name],
            high=found.max[name],
            colour=COLOURS[place % len(COLOURS)],
            note=number(found.median[name]),
        )
        for place, (arm, found) in enumerate(having)
    ]
    chart = Bars(rows=bars, form="points", x_label=name)
    alt = f"{name} of each arm of {report.bench}, median and range"
    return draw(chart, name=f"{report.bench}-{name}", alt=alt, height=70 + 26 * len(bars))


def _section(section: Section) -> str:
    parts = [f'<section id="{escape(section.key)}">\n<h2>{escape(section.title)}</h2>']
    if section.sentences:
        parts.append(f"<p>{escape(' '.join(section.sentences))}</p>")
    if section.figures:
        captioned = [f"{f.svg}\n<figcaption>{escape(f.caption)}</figcaption>" for f in section.figures]
        parts.append('<div class="figures">\n' + "\n".join(f"<figure>{c}</figure>" for c in captioned) + "\n</div>")
    parts += [_table(table) for table in section.tables]
    if section.note:
        parts.append(f'<p class="fine">{escape(section.note)}</p>')
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    thead = f"<thead><tr>{head}</tr></thead>"
    inner = f"{thead}\n<tbody>\n{rows}\n</tbody>"
    return f'<div class="scroll">\n<table class="t{table.num_text_columns}">{inner}</table></div>'
