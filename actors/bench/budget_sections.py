"""`tool-budget` on a page: curves of success by what was spent, the table, and what follows from it in words."""

import math
from collections.abc import Sequence

import numpy as np

from actors.bench.bench import Record, Records
from actors.bench.budget_arms import ARMS
from actors.bench.budget_bench import CACHE_NAME
from actors.bench.budget_curves import Cost, Middle, curve_of
from actors.bench.budget_figures import BASE, BLIND, ENTROPY, LEVELS, OURS, OURS_BLIND, above, compare
from actors.quantities import count, percent
from actors.report.charts import BLUE, FAINT, GREEN, INK, MUTED, OCHRE, RUST, VIOLET, Line, Lines
from actors.report.plots import draw
from actors.report.section import Figure, Section, Table, counted, number

COLOURS = {BASE: INK, OURS: RUST, ENTROPY: BLUE, BLIND: OCHRE, "tree_grpo": GREEN, "aepo": VIOLET, "official": MUTED}
LABELS: dict[Cost, str] = {"executed": "executed tool calls", "requested": "requested", "tokens": "sampled tokens"}
NUM_POINTS = 60


def sections(records: Records) -> Sequence[Section]:
    """One section without reuse of results, one with it; those of which there are records."""
    titles = {"": "Success by calls, every call executed", CACHE_NAME: "The same with results used again"}
    found: list[Section] = []
    for suffix, title in titles.items():
        part = {arm: records[f"{arm}{suffix}"] for arm in ARMS if records.get(f"{arm}{suffix}")}
        if part:
            found.append(_section(part, key=f"calls{suffix.replace('+', '-')}", title=title))
    return found


def _section(records: Records, *, key: str, title: str) -> Section:
    costs: tuple[Cost, Cost] = ("executed", "tokens")
    return Section(
        key=key,
        title=title,
        sentences=[*_ours(records), *_entropy(records)],
        figures=[
            Figure(
                svg=draw(
                    Lines(
                        lines=[_mean_curve(arm, found, cost) for arm, found in records.items()],
                        x_label=LABELS[cost],
                        y_label="greedy success on held-out questions",
                        is_share=True,
                    ),
                    name=f"{key}-{cost}",
                    alt=f"Success by {LABELS[cost]}, for each arm",
                    height=330,
                ),
                caption=f"Mean over seeds of the monotone fits, by {LABELS[cost]}.",
            )
            for cost in costs
        ],
        tables=[_table(records), _levels(records)],
        note="Needed: until an arm was as good as chain with the same seed was in the end; the ratio is to what chain "
        "itself needed to be there first. Medians over seeds, with 95 % intervals by resampling seeds; an interval of "
        "three seeds is little more than their range. Not reached: more than half of the runs ended before.",
    )


def _mean_curve(arm: str, records: Sequence[Record], cost: Cost) -> Line:
    curves = [curve_of(record, cost) for record in records]
    # As far as every seed went, so that no end of the line is the mean of fewer.
    x = np.linspace(0.0, min(float(curve.spent[-1]) for curve in curves), NUM_POINTS)
    y = np.mean([np.interp(x, curve.spent, curve.success) for curve in curves], axis=0)
    is_main = arm in (BASE, OURS)
    return Line(
        x=x.tolist(),
        y=y.tolist(),
        label=arm,
        colour=COLOURS.get(arm, FAINT),
        form="line" if is_main else "thin",
    )


def _table(records: Records) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm, found in records.items():
        by_calls, by_tokens = compare(records, arm, "executed"), compare(records, arm, "tokens")
        ends = [record["success"] for record in found]
        rows.append(
            (
                arm,
                count(len(found)),
                percent(float(np.median(ends))),
                count(float(np.median([record["requested"] for record in found]))),
                count(float(np.median([record["executed"] for record in found]))),
                "" if by_calls is None else _calls(by_calls.spent.value),
                "" if by_calls is None else str(by_calls.ratio),
                "" if by_calls is None else f"{by_calls.num_censored} of {by_calls.num_seeds}",
                "" if by_tokens is None else str(by_tokens.ratio),
            )
        )
    columns = (
        "arm",
        "seeds",
        "success at the end",
        "requested",
        "executed",
        "needed",
        "of chain's",
        "censored",
        "tokens needed, of chain's",
    )
    return Table(columns=columns, rows=rows)


def _levels(records: Records) -> Table:
    """What each arm needed on the way, against `chain`."""
    rows: list[tuple[str, ...]] = []
    for arm in records:
        found = [compare(records, arm, "executed", level=level) for level in LEVELS]
        rows.append((arm, *("" if c is None else str(c.ratio) for c in found)))
    return Table(columns=("of chain's calls, to", *(f"{100 * level:.0f} %" for level in LEVELS)), rows=rows)


def _calls(value: float) -> str:
    return "not reached" if math.isinf(value) else count(value)


def _ours(records: Records) -> list[str]:
    found = compare(records, OURS, "executed")
    if found is None:
        return []
    pairs = counted(found.num_seeds, "pair")
    told = f"On {pairs} of seeds, ours needed {found.ratio} times the executed calls of chain"
    ends = {arm: float(np.median([record["success"] for record in records[arm]])) for arm in (OURS, BASE)}
    censored = f", {found.num_censored} of them without getting there" if found.num_censored else ""
    return [f"{told}{censored}; it ended at {percent(ends[OURS])}, chain at {percent(ends[BASE])}."]


def _entropy(records: Records) -> list[str]:
    pairs = {
        "the curve of forks by entropy": (ENTROPY, BLIND),
        "that of ours": (OURS, OURS_BLIND),
    }
    told: list[str] = []
    for name, (one, other) in pairs.items():
        if (found := above(records, one, other)) is None:
            continue
        told.append(
            f"At equal executed calls {name} lies {number(100 * found.value)} points above the same with blind forks "
            f"at the same rate ({other}), {_verdict(found)}."
        )
    return told


def _verdict(found: Middle) -> str:
    if not found.has_interval:
        return "by too few seeds for an interval"
    between = f"{number(100 * found.low)} to {number(100 * found.high)}"
    return f"{between}: {'no ' if found.low <= 0 <= found.high else 'a '}difference that these seeds can tell"
