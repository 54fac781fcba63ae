"""Where forks happened, and what they were worth, drawn and told."""

from collections.abc import Sequence

import numpy as np

from actors.quantities import count, percent
from actors.report.charts import COLOURS, MUTED, Bar, Bars
from actors.report.forks import ForkReport, Place, PlaceWorth, report_forks
from actors.report.intervals import Estimate
from actors.report.plots import draw
from actors.report.record import RunRecord
from actors.report.section import (
    Figure,
    Section,
    Table,
    counted,
    number,
    share_spread,
    spread,
    with_spread,
)


def forks_section(record: RunRecord) -> Section:
    """Where forks happened, and what they were worth."""
    key, title = "forks", "Forks"
    report = report_forks(record.trees)
    if not report.places:
        return Section(
            key=key, title=title, sentences=["No fork was considered: every trajectory began at the prompt."]
        )
    figures: list[Figure] = [_where_figure(report)]
    if report.total.num_granted:
        figures.append(_worth_figure(report))
    return Section(
        key=key,
        title=title,
        sentences=_fork_sentences(report),
        figures=figures,
        tables=[_fork_table(report)] if report.total.num_granted else [],
        note="A pair is mixed where its two trajectories got different rewards: only then does it tell good from bad. "
        "Pairs from the prompt are those of the same trees, each tree weighing as much as it has forks. "
        "Intervals, at 95 %, resample prompts.",
    )


def place_name(place: Place) -> str:
    """`2nd result · search`."""
    if not place.observation:
        return "before any result"
    number = place.observation
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending} result · {place.tool}" if place.tool else f"{number}{ending} result"


def _named(report: ForkReport) -> list[tuple[str, PlaceWorth]]:
    named = [(place_name(place), worth) for worth in report.places for place in worth.places]
    return named if report.others is None else [*named, ("other places", report.others)]


def _fork_sentences(report: ForkReport) -> list[str]:
    total, roots = report.total, report.roots
    told: list[str] = []
    if total.num_considered:
        told.append(
            f"The policy was asked for a fork behind {counted(total.num_considered, 'tool result')}, wanted one behind "
            f"{count(total.num_wanted)}, and {counted(total.num_granted, 'branch was', 'branches were')} granted."
        )
    else:
        told.append(f"{counted(total.num_granted, 'branch was', 'branches were')} granted.")
    if not total.num_granted:
        return told
    mixed = with_spread(percent(total.mixed.value), share_spread(total.mixed))
    root_mixed = with_spread(percent(roots.mixed.value), share_spread(roots.mixed))
    told.append(
        f"{mixed} of the branches ended with another reward than the path they left; of two paths of the same tree "
        f"that both began at the prompt, {root_mixed} did."
    )
    price = (
        f"A branch executed {number(total.executed)} calls of its own and inherited {number(total.inherited)} tokens; "
        f"a path from the prompt executed {number(roots.executed)}"
    )
    if report.price.has_interval and np.isfinite(report.price.value):
        ours, theirs = number(total.calls_per_mixed), number(roots.calls_per_mixed)
        price += f". For each mixed pair that is {ours} calls against {theirs}: {_price_verdict(report.price)}"
    return [*told, price + "."]


def _price_verdict(price: Estimate) -> str:
    """Which of the two is the cheaper way to a mixed pair, as far as the interval of their ratio says."""
    if price.low <= 1 <= price.high:
        return f"no difference that these prompts could show (ratio {spread(price)})"
    which = "the cheaper" if price.high < 1 else "the dearer"
    return f"forks are {which} way to one, {number(price.value)} times the calls ({spread(price)})"


def _where_figure(report: ForkReport) -> Figure:
    rows = [
        Bar(
            label=name,
            amounts=(worth.num_considered, worth.num_wanted, worth.num_granted),
            note=f"{count(worth.num_considered)} · {count(worth.num_wanted)} · {count(worth.num_granted)}",
        )
        for name, worth in _named(report)
    ]
    chart = Bars(rows=rows, form="bars", x_label="considered · wanted · granted")
    svg = draw(chart, name="fork-places", alt="Forks considered, wanted and granted, by place", height=_height(rows))
    return Figure(
        svg=svg,
        caption="Where forks were considered (pale), wanted, and granted (dark): how many results the path had seen, "
        "and whose was the last.",
    )


def _worth_figure(report: ForkReport) -> Figure:
    granted = [(name, worth) for name, worth in _named(report) if worth.num_granted]
    rows = [_worth_bar(name, worth.mixed, count(worth.num_granted), COLOURS[0]) for name, worth in granted]
    if report.roots.mixed.is_known:
        rows.insert(0, _worth_bar("from the prompt", report.roots.mixed, "pairs", MUTED))
    chart = Bars(rows=rows, form="points", x_label="share of mixed outcomes", is_share=True)
    svg = draw(chart, name="fork-worth", alt="Share of mixed outcomes, by place of the fork", height=_height(rows))
    return Figure(svg=svg, caption="How often the two ends of a fork got different rewards; beside it, how many forks.")


def _worth_bar(label: str, mixed: Estimate, note: str, colour: str) -> Bar:
    return Bar(label=label, amounts=(mixed.value,), low=mixed.low, high=mixed.high, note=note, colour=colour)


def _height(rows: Sequence[Bar]) -> int:
    return 70 + 26 * max(len(rows), 3)


def _fork_table(report: ForkReport) -> Table:
    def row(name: str, worth: PlaceWorth) -> tuple[str, ...]:
        return (
            name,
            count(worth.num_granted),
            with_spread(percent(worth.mixed.value), share_spread(worth.mixed)),
            number(worth.executed),
            number(worth.calls_per_mixed),
            number(worth.inherited),
        )

    rows = [row(name, worth) for name, worth in _named(report) if worth.num_granted]
    rows.append(row("all forks", report.total))
    roots = report.roots
    mixed = with_spread(percent(roots.mixed.value), share_spread(roots.mixed))
    rows.append(("from the prompt", "", mixed, number(roots.executed), number(roots.calls_per_mixed), "0"))
    columns = (
        "branch starts behind",
        "branches",
        "mixed outcome",
        "own calls",
        "calls a mixed pair",
        "inherited tokens",
    )
    return Table(columns=columns, rows=rows)
