"""The paper's first figure, from this run: entropy around tool results, drawn and told."""

from collections.abc import Sequence

import numpy as np

from actors.quantities import count
from actors.report.charts import COLOURS, FAINT, Line, Lines
from actors.report.entropy import FIRST_SEGMENT, NUM_DISTANCES, Contrast, Stretch, by_distance, contrast, stretches
from actors.report.intervals import Estimate
from actors.report.plots import draw
from actors.report.record import GrownTree, RunRecord
from actors.report.section import Figure, Section, Table, number, spread, with_spread


def entropy_section(record: RunRecord, *, probe_tokens: int) -> Section:
    """The paper's first figure, from this run."""
    key, title = "entropy", "Entropy around tool results"
    by_tree = [(tree, stretches(tree)) for tree in record.trees]
    everything = [found for _, found in by_tree]
    tools = [tool for tool in record.tool_names if any(s.source == tool for found in everything for s in found)]
    if not tools:
        return Section(key=key, title=title, sentences=["No token was sampled behind a tool result."])
    contrasts = [contrast(everything, tool, probe_tokens=probe_tokens) for tool in tools]
    if len(tools) > 1:
        contrasts.insert(0, contrast(everything, None, probe_tokens=probe_tokens))
    early, late = _periods(by_tree, num_steps=record.num_steps)
    sentences = [_contrast_sentence(c, probe_tokens=probe_tokens) for c in contrasts]
    periods = [("all steps", everything)]
    if early and late:
        periods = [("first third of the steps", early), ("last third of the steps", late)]
        sentences.append(_change_sentence(early, late, probe_tokens=probe_tokens))
    return Section(
        key=key,
        title=title,
        sentences=sentences,
        figures=_entropy_figures(periods, tools),
        tables=[_contrast_table(contrasts, probe_tokens=probe_tokens)],
        note="Entropy of the distribution each token was drawn from, as the generator reported it. Tokens that several "
        "paths share count once, and all finished trees count, trained or not. Intervals, at 95 %, resample prompts. "
        "Elsewhere: all other sampled tokens of trajectories that hold such a result, the first segment included.",
    )


def _periods(
    by_tree: Sequence[tuple[GrownTree, list[Stretch]]], *, num_steps: int
) -> tuple[list[list[Stretch]], list[list[Stretch]]]:
    """Trees of the first and of the last third of the steps, by the weights they began with."""
    early = [found for tree, found in by_tree if 3 * tree.version < num_steps]
    late = [found for tree, found in by_tree if 3 * tree.version >= 2 * num_steps]
    return (early, late) if num_steps >= 3 else ([], [])


def _contrast_sentence(contrast: Contrast, *, probe_tokens: int) -> str:
    where = "any tool result" if contrast.source is None else f"a {contrast.source} result"
    values = f"{number(contrast.behind.value)} nats against {number(contrast.elsewhere.value)} elsewhere"
    told = f"In the {probe_tokens} tokens behind {where} the policy has {values} in the same trajectories"
    ratio = contrast.ratio
    if not ratio.has_interval:
        return told + "; too few prompts for an interval."
    times = f"{number(ratio.value)} times as much ({spread(ratio)})"
    if ratio.low > 1:
        return f"{told}: {times}."
    if ratio.high < 1:
        return f"{told}: it is more certain there, {times}."
    return f"{told}: no difference that these prompts could show (ratio {spread(ratio)})."


def _change_sentence(early: list[list[Stretch]], late: list[list[Stretch]], *, probe_tokens: int) -> str:
    before, after = (contrast(part, None, probe_tokens=probe_tokens) for part in (early, late))

    def told(part: Contrast) -> str:
        ratio = f"a ratio of {number(part.ratio.value)}" if part.ratio.is_known else "no ratio"
        return f"{number(part.behind.value)} and {number(part.elsewhere.value)}, {ratio}"

    return f"Behind results and elsewhere: {told(before)} in the first third of the steps; {told(after)} in the last."


def _entropy_figures(periods: Sequence[tuple[str, list[list[Stretch]]]], tools: Sequence[str]) -> list[Figure]:
    distances = list(range(1, NUM_DISTANCES + 1))
    charts: list[tuple[str, list[Line]]] = []
    for period, trees in periods:
        lines = [_entropy_line(distances, by_distance(trees, FIRST_SEGMENT), "first segment", FAINT, form="dashed")]
        for place, tool in enumerate(tools):
            colour = COLOURS[place % len(COLOURS)]
            lines.append(_entropy_line(distances, by_distance(trees, tool), f"behind {tool}", colour))
        charts.append((period, lines))
    top = max((v for _, lines in charts for line in lines for v in [*line.y, *line.high] if not np.isnan(v)), default=1)
    return [
        Figure(
            svg=draw(
                Lines(
                    lines=lines,
                    x_label="tokens behind the result",
                    y_label="mean entropy, nats",
                    from_zero=True,
                    y_max=1.05 * top,
                ),
                name=f"entropy-{place}",
                alt=f"Entropy by distance behind a tool result, {period}",
                height=290,
            ),
            caption=f"{period[0].upper()}{period[1:]}.",
        )
        for place, (period, lines) in enumerate(charts)
    ]


def _entropy_line(x: list[int], estimates: Sequence[Estimate], label: str, colour: str, *, form: str = "line") -> Line:
    low = [e.low if e.has_interval else e.value for e in estimates]
    high = [e.high if e.has_interval else e.value for e in estimates]
    y = [e.value for e in estimates]
    if form == "dashed":
        return Line(x=x, y=y, low=low, high=high, label=label, colour=colour, form="dashed")
    return Line(x=x, y=y, low=low, high=high, label=label, colour=colour)


def _contrast_table(contrasts: Sequence[Contrast], *, probe_tokens: int) -> Table:
    rows = [
        (
            "any tool" if c.source is None else c.source,
            with_spread(number(c.behind.value), spread(c.behind)),
            with_spread(number(c.elsewhere.value), spread(c.elsewhere)),
            with_spread(number(c.ratio.value), spread(c.ratio)),
            count(c.num_behind),
            count(c.num_elsewhere),
            count(c.num_trees),
        )
        for c in contrasts
    ]
    columns = (
        "behind",
        f"first {probe_tokens} tokens",
        "elsewhere",
        "ratio",
        "tokens behind",
        "tokens elsewhere",
        "prompts",
    )
    return Table(columns=columns, rows=rows)
