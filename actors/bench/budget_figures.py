"""The figures of `tool-budget`: what an arm needed, against what `chain` needed, seed by seed."""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from actors.bench.bench import Record, Records
from actors.bench.budget_curves import NOT_REACHED, Cost, Middle, curve_of, mean_success, middle, spent_to_reach

BASE = "chain"
"""GRPO: what the others are compared with."""
OURS = "ours"
ENTROPY, BLIND = "arpo", "uniform"
OURS_BLIND = "ours_blind"
VARIANTS = {"small_groups": ("ours_m4", "chain_m4"), "fixed_cohorts": ("ours_fixed", "chain_fixed")}
"""`ours` against `chain` with something else in both."""
LEVELS = (0.6, 0.7, 0.8, 0.9, 0.95)
"""Success, on the way: near its end a curve is flat, and a question more or less moves where it arrives."""
UNKNOWN = Middle(math.nan, math.nan, math.nan)


class Comparison(NamedTuple):
    """One arm against `chain`, on the seeds that both have."""

    arm: str
    num_seeds: int
    spent: Middle
    """To be as good as `chain` was in the end, with the same seed; or as good as was asked for."""
    ratio: Middle
    """Of that to what `chain` had spent when it first was there."""
    num_censored: int
    """Seeds with which it ended before."""
    end: Middle
    """Its success at its own end."""
    total: float
    """All that a run spent, by the median."""


def compare(
    records: Records, arm: str, cost: Cost, *, level: float | None = None, base: str = BASE
) -> Comparison | None:
    """`level` asks for that success, instead of the one at which the `base` ended with the same seed.

    None where there is nothing to be compared: no pair, or a `base` that never got there, or was there untrained.
    """
    pairs = list(zip(records.get(arm, ()), records.get(base, ()), strict=False))
    spent: list[float] = []
    ratios: list[float] = []
    for record, chain in pairs:
        own, other = curve_of(record, cost), curve_of(chain, cost)
        target = other.end if level is None else level
        needed = spent_to_reach(other, target)
        if 0 < needed < NOT_REACHED:
            spent.append(spent_to_reach(own, target))
            ratios.append(spent[-1] / needed)
    if not ratios:
        return None
    return Comparison(
        arm=arm,
        num_seeds=len(ratios),
        spent=middle(spent),
        ratio=middle(ratios),
        num_censored=sum(math.isinf(value) for value in spent),
        end=middle([record["success"] for record, _ in pairs]),
        total=median(record[cost] for record, _ in pairs),
    )


def above(records: Records, arm: str, other: str, cost: Cost = "executed") -> Middle | None:
    """How far the curve of one arm lies above another's, on average up to what the cheaper one spent; by seeds."""
    pairs = list(zip(records.get(arm, ()), records.get(other, ()), strict=False))
    return middle([_above(*pair, cost) for pair in pairs]) if pairs else None


def _above(one: Record, other: Record, cost: Cost) -> float:
    curves = [curve_of(record, cost) for record in (one, other)]
    common = min(float(curve.spent[-1]) for curve in curves)
    first, second = (mean_success(curve, up_to=common) for curve in curves)
    return first - second


def figures(records: Records, *, prefix: str = "") -> dict[str, float]:
    """By name; what was not measured is missing. A ratio is infinite where too many runs of `ours` did not get there,
    and NaN where `chain` itself never got anywhere."""
    found: dict[str, float] = {}
    costs: Sequence[tuple[str, Cost]] = (("calls", "executed"), ("requested_calls", "requested"), ("tokens", "tokens"))
    for name, cost in costs:
        if records.get(OURS) and records.get(BASE):
            ours = compare(records, OURS, cost)
            ratio = UNKNOWN if ours is None else ours.ratio
            found |= named(f"{name}_ratio", ratio, suffix="_vs_grpo")
    for level in LEVELS:
        if (on_the_way := compare(records, OURS, "executed", level=level)) is not None:
            found[f"calls_ratio_at_{100 * level:.0f}"] = on_the_way.ratio.value
    for variant, (ours_too, chain_too) in VARIANTS.items():
        if (pair := compare(records, ours_too, "executed", base=chain_too)) is not None:
            found |= named(f"calls_ratio_{variant}", pair.ratio)
    if ours := compare(records, OURS, "executed"):
        found |= {"num_pairs": float(ours.num_seeds), "num_censored": float(ours.num_censored)}
    for name, arm in (("success_ours", OURS), ("success_grpo", BASE)):
        if records.get(arm):
            found[name] = median(record["success"] for record in records[arm])
    for name, arms in (("entropy_minus_uniform", (ENTROPY, BLIND)), ("ours_minus_blind", (OURS, OURS_BLIND))):
        if (difference := above(records, *arms)) is not None:
            found |= named(name, difference)
    return {f"{prefix}{name}": value for name, value in found.items()}


def named(name: str, found: Middle, *, suffix: str = "") -> dict[str, float]:
    """A median and its interval as figures: `name` with `suffix`, and `name_ci_low` and `name_ci_high`."""
    return {f"{name}{suffix}": found.value, f"{name}_ci_low": found.low, f"{name}_ci_high": found.high}
