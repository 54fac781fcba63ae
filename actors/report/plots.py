"""Plots as inline SVG, in the hand of one page; the door to matplotlib.

`draw` knows how a chart looks, and `charts` what one is. Sizes are in CSS pixels at the size a page shows it,
text stays text in the page's own font, and labels stand beside what they name.
"""

import html
import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from actors.report.charts import FAINT, INK, MUTED, RULE, Bars, Chart, Line, Lines


def draw(chart: Chart, *, name: str, alt: str, width: int = 500, height: int = 250) -> str:
    """An `<svg>` element. `name` is unique on the page, and `alt` says in words what is to be seen."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(name):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes: Any = figure.subplots()
        match chart:
            case Lines():
                _draw_lines(axes, chart)
            case Bars():
                _draw_bars(axes, chart)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(target.getvalue(), name=name, alt=alt)


@contextmanager
def _style(name: str) -> Generator[None, None, None]:
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": ["DejaVu Sans"],
        "font.size": 11.5,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 11.5,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "ytick.major.size": 0,
        "xtick.major.size": 3,
        "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round",
        "text.parse_math": False,
        "text.color": INK,
    }
    with matplotlib.rc_context(settings):
        yield


# -- lines --------------------------------------------------------------------------------------------------------


def _draw_lines(axes: Any, chart: Lines) -> None:
    for line in chart.lines:
        _draw_line(axes, line)
    for level in chart.levels:
        axes.axhline(level.y, color=level.colour, linewidth=1.1, dashes=(5, 3))
    axes.set_xlabel(chart.x_label)
    axes.set_title(chart.y_label, loc="left", fontsize=11.5, color=MUTED, pad=8)
    if chart.is_log:
        axes.set_yscale("log")
    elif chart.is_share:
        axes.set_ylim(-0.02, 1.02)
    elif chart.from_zero:
        axes.set_ylim(0, chart.y_max or max(axes.get_ylim()[1], 1e-9))
    _tick(axes, chart)
    _label_ends(axes, chart)


def _draw_line(axes: Any, line: Line) -> None:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    is_known = ~np.isnan(y)
    if line.form == "markers":
        if len(line.low):
            axes.vlines(x, line.low, line.high, color=line.colour, linewidth=1.2, alpha=0.75)
        axes.plot(
            x[is_known],
            y[is_known],
            "o",
            color=line.colour,
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=1.0,
        )
        return
    if len(line.low):
        axes.fill_between(x, line.low, line.high, color=line.colour, alpha=0.16, linewidth=0)
    looks: dict[str, dict[str, Any]] = {
        "line": {},
        "thin": {"linewidth": 1.0, "alpha": 0.65},
        "dashed": {"linewidth": 1.2, "linestyle": (0, (4, 2.5))},
        "steps": {"drawstyle": "steps-mid"},
    }
    axes.plot(x[is_known], y[is_known], color=line.colour, **looks[line.form])


def _as_percent(value: float, _: object) -> str:
    return f"{100 * value:.0f} %"


def _plainly(value: float, _: object) -> str:
    text = np.format_float_positional(value, precision=4, fractional=False, trim="-")
    return text.replace("-", "\N{MINUS SIGN}")


def _tick(axes: Any, chart: Lines) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if chart.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(_as_percent))
    elif chart.is_log:
        axes.yaxis.set_major_formatter(FuncFormatter(_plainly))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
    else:
        is_whole = all(float(y).is_integer() for line in chart.lines for y in line.y)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=is_whole))
        axes.yaxis.set_major_formatter(FuncFormatter(_plainly))


def _label_ends(axes: Any, chart: Lines) -> None:
    """Names behind the last points, moved apart where they would overlap."""
    wanted: list[tuple[float, str, str]] = []
    for line in chart.lines:
        known = [y for y in line.y if not np.isnan(y)]
        if line.label and known:
            wanted.append((known[-1], line.label, line.colour))
    wanted += [(level.y, level.label, level.colour) for level in chart.levels]
    if not wanted:
        return
    figure_height = axes.figure.get_figheight() * 72
    # The axes take about three quarters of the height; a label needs 14 pixels.
    gap = 14.5 / (0.72 * figure_height)
    places = axes.transAxes.inverted().transform(axes.transData.transform([(0, y) for y, _, _ in wanted]))[:, 1]
    for place, (_, label, colour) in zip(_apart(places.tolist(), gap=gap), wanted, strict=True):
        axes.text(1.015, place, label, transform=axes.transAxes, color=colour, va="center", ha="left", clip_on=False)


def _apart(places: list[float], *, gap: float) -> list[float]:
    """Heights at least `gap` apart, in the order of the wanted ones and near them.

    >>> [round(p, 2) for p in _apart([0.5, 0.52, 0.9], gap=0.1)]
    [0.46, 0.56, 0.9]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        groups.append([i])
        centres.append(places[i])
        while len(groups) > 1 and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            merged = groups[-2] + groups[-1]
            centre = sum(places[j] for j in merged) / len(merged)
            groups[-2:], centres[-2:] = [merged], [centre]
    moved = [0.0] * len(places)
    for group, centre in zip(groups, centres, strict=True):
        for rank, i in enumerate(group):
            moved[i] = centre + gap * (rank - (len(group) - 1) / 2)
    return moved


# -- bars ---------------------------------------------------------------------------------------------------------


def _draw_bars(axes: Any, chart: Bars) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    places = list(range(len(chart.rows)))[::-1]
    for place, row in zip(places, chart.rows, strict=True):
        if chart.form == "points":
            axes.hlines(place, row.low, row.high, color=row.colour, linewidth=2.0, alpha=0.55)
            axes.plot(
                row.amounts[0], place, "o", color=row.colour, markersize=7, markeredgecolor="white", clip_on=False
            )
        else:
            for amount, alpha in zip(row.amounts, np.linspace(0.22, 1.0, len(row.amounts)), strict=True):
                axes.barh(place, amount, height=0.62, color=row.colour, alpha=alpha, linewidth=0)
        reach = np.nanmax([*row.amounts, row.high])
        axes.annotate(row.note, (reach, place), (7, 0), textcoords="offset points", va="center", color=MUTED)
    if chart.mark is not None:
        axes.axvline(chart.mark[0], color=MUTED, linewidth=1.1, dashes=(5, 3))
    axes.set_yticks(places, [row.label for row in chart.rows])
    axes.set_ylim(-0.6, len(chart.rows) - 0.4)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_xlabel(chart.x_label)
    if chart.is_share:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(_as_percent))
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


# -- the element --------------------------------------------------------------------------------------------------


def _inline(svg: str, *, name: str, alt: str) -> str:
    """Only the element, without what a page has already, with ids that no other plot of the page has."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box is not None, "matplotlib gives every figure a view box"
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub(r"\n\s*", "\n", body[body.index(">") + 1 :])
    label = html.escape(alt, quote=True)
    return f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{label}">{body.strip()}'
