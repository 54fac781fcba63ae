"""`arpo bench tool-budget`: what is held equal, how curves are read, what counts as reached, and what intervals say."""

import math
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from msgspec.structs import replace

from actors.bench import harness
from actors.bench.bench import Record
from actors.bench.budget_arms import ARMS, CACHED, CONFIG, QUICK
from actors.bench.budget_bench import benches
from actors.bench.budget_curves import Curve, curve_of, mean_success, middle, monotone, spent_to_reach
from actors.bench.budget_figures import above, compare, figures
from actors.bench.budget_run import Leash, record_of, train_once
from actors.bench.budget_sections import sections
from actors.config import Config
from engine.config import differences
from engine.errors import LearnerError, StalledError
from engine.events import Evaluated
from engine.metrics import StepMetrics

values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def run_of(*success: float, calls: float = 100.0, tokens: float = 1000.0) -> Record:
    """A run that spent equally much between two measurements."""
    record: Record = {"success": success[-1], "executed": calls * (len(success) - 1), "requested": 0.0, "tokens": 0.0}
    for step, value in enumerate(success):
        record[f"success@{step}"] = value
        record |= {f"executed@{step}": calls * step, f"requested@{step}": calls * step, f"tokens@{step}": tokens * step}
    return record


# -- what is held equal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_in_how_it_forks_and_learns_and_in_nothing_else(arm: str) -> None:
    chain, other = (Config.load(CONFIG, *ARMS[name]) for name in ("chain", arm))
    may_differ = ("rollout.branching", "rollout.granting", "rollout.grow", "learner.advantage", "learner.loss")
    may_differ += ("rollout.supplements", "learner.normalisation", "learner.overlong")
    if arm.endswith(("_m4", "_fixed")):
        may_differ += ("rollout.size" if arm.endswith("_m4") else "train.deterministic",)
    assert [key for key in differences(chain, other) if not key.startswith(may_differ)] == []


def test_forks_of_ours_are_trained_as_those_of_arpo_are() -> None:
    arpo = Config.load(CONFIG, *ARMS["arpo"])
    for arm in ("ours", "ours_blind", "uniform", "official", "arpo_sampled"):
        assert Config.load(CONFIG, *ARMS[arm]).learner == arpo.learner


def test_without_the_cache_no_call_is_answered_by_another_one_and_with_it_all_may_be() -> None:
    assert not Config.load(CONFIG, *ARMS["ours"]).tools.cache.reuse
    assert Config.load(CONFIG, *ARMS["ours"], *CACHED).tools.cache.reuse


@pytest.mark.parametrize("arm", ARMS)
def test_quick_runs_are_configurations_too(arm: str) -> None:
    assert Config.load(CONFIG, *ARMS[arm], *QUICK).rollout.size == 4


def test_a_key_stands_for_the_whole_configuration_of_an_arm(tmp_path: Path) -> None:
    (off, on), (elsewhere, _) = benches(tmp_path, is_quick=False), benches(tmp_path / "x", is_quick=False)
    (quick,) = benches(tmp_path, is_quick=True)
    assert off.keys == elsewhere.keys, "where it lies is no part of it"
    assert len({*off.keys.values(), *on.keys.values(), *quick.keys.values()}) == 2 * len(ARMS) + 2
    assert (off.repetitions, off.limits["arpo"], "ours" in off.limits) == (8, 3, False)


# -- curves -----------------------------------------------------------------------------------------------------------


@given(values)
def test_a_monotone_fit_never_falls_and_keeps_the_mean(found: list[float]) -> None:
    fit = monotone(found)
    assert all(a <= b for a, b in pairwise(fit))
    assert np.isclose(fit.mean(), np.mean(found), atol=1e-9)
    assert np.allclose(monotone(fit.tolist()), fit)
    assert np.allclose(monotone(sorted(found)), sorted(found))


@given(values, st.lists(st.floats(-1, 1), min_size=12, max_size=12))
def test_no_other_curve_that_never_falls_is_nearer(found: list[float], steps: list[float]) -> None:
    other = np.sort(np.array(found) + np.array(steps[: len(found)]))
    fit = monotone(found)
    assert ((fit - found) ** 2).sum() <= ((other - found) ** 2).sum() + 1e-9


def test_one_lucky_measurement_is_no_arrival() -> None:
    lucky = curve_of(run_of(0.4, 0.9, 0.5, 0.9), "executed")
    assert spent_to_reach(lucky, 0.9) == 300.0


def test_what_was_never_reached_is_censored_and_not_the_end() -> None:
    assert math.isinf(spent_to_reach(curve_of(run_of(0.4, 0.6), "executed"), 0.7))
    assert spent_to_reach(curve_of(run_of(0.4, 0.6), "executed"), 0.4) == 0.0


@given(values, st.floats(0, 1))
def test_a_curve_is_at_the_target_where_it_is_said_to_reach_it(found: list[float], target: float) -> None:
    curve = Curve(10.0 * np.arange(len(found), dtype=np.float64), monotone(found))
    where = spent_to_reach(curve, target)
    if math.isinf(where):
        assert curve.end < target
    elif where > 0:
        assert np.isclose(np.interp(where, curve.spent, curve.success), target)


@given(values, st.floats(1, 100))
def test_the_mean_height_of_a_curve_lies_between_its_ends(found: list[float], up_to: float) -> None:
    curve = Curve(100.0 * np.arange(len(found), dtype=np.float64), monotone(found))
    assert curve.success[0] - 1e-9 <= mean_success(curve, up_to=up_to) <= curve.end + 1e-9


# -- intervals --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=9))
def test_an_interval_holds_the_median_and_scales(found: list[float]) -> None:
    one, ten = middle(found), middle([10 * value for value in found])
    assert min(found) <= one.low <= one.value <= one.high <= max(found)
    assert np.isclose(one.value, np.median(found))
    assert np.allclose(ten, [10 * x for x in one])


def test_two_seeds_have_no_interval() -> None:
    assert middle([0.2, 0.4]).value == pytest.approx(0.3)
    assert not middle([0.2, 0.4]).has_interval
    assert str(middle([0.25])) == "0.25"


@pytest.mark.parametrize(("num_censored", "is_known"), [(0, True), (3, True), (4, False), (8, False)])
def test_a_median_is_unknown_where_half_of_the_runs_are_censored(num_censored: int, is_known: bool) -> None:
    found = middle([0.5] * (8 - num_censored) + [math.inf] * num_censored)
    assert (not math.isinf(found.value)) is is_known
    assert not math.isnan(found.high)
    if num_censored == 3:
        assert math.isinf(found.high), "a resample may hold more censored runs than there were"


# -- figures ----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_taken_seed_by_seed_to_where_chain_was_first_as_good_as_in_the_end() -> None:
    records = {
        # The second chain stands still from 100 calls on: what it wasted afterwards is not held against it.
        "chain": [run_of(0.4, 0.6, 0.8), run_of(0.4, 0.8, 0.8), run_of(0.4, 0.6, 0.7)],
        "ours": [run_of(0.4, 0.8, calls=50), run_of(0.4, 0.8, calls=50), run_of(0.4, 0.7, calls=80)],
    }
    found = compare(records, "ours", "executed")
    assert found is not None
    assert found.ratio.value == 0.4  # of 0.25, 0.5 and 0.4
    assert found.spent.value == 50.0
    assert (found.num_seeds, found.num_censored, found.total) == (3, 0, 50.0)


def test_a_run_that_ends_below_its_pair_is_counted_as_censored() -> None:
    records = {"chain": [run_of(0.4, 0.8)] * 3, "ours": [run_of(0.4, 0.9), run_of(0.4, 0.7), run_of(0.4, 0.6)]}
    found = figures(records)
    assert (found["num_pairs"], found["num_censored"]) == (3, 2)
    assert math.isinf(found["calls_ratio_vs_grpo"])
    assert found["success_ours"] == 0.7


def test_a_level_on_the_way_is_asked_of_both_and_only_where_chain_got_there() -> None:
    records = {
        "chain": [run_of(0.4, 0.6, 0.8), run_of(0.4, 0.6, 0.7)],
        "ours": [run_of(0.4, 0.8, calls=50), run_of(0.4, 0.9, calls=50)],
    }
    found = compare(records, "ours", "executed", level=0.6)
    assert found is not None
    assert np.isclose(found.ratio.value, (25 / 100 + 20 / 100) / 2)
    beyond = compare(records, "ours", "executed", level=0.75)
    assert beyond is not None
    assert beyond.num_seeds == 1
    assert compare(records, "ours", "executed", level=0.3) is None, "there before any training"


def test_arms_are_compared_on_the_seeds_that_both_have() -> None:
    records = {"chain": [run_of(0.4, 0.8)] * 8, "arpo": [run_of(0.4, 0.8, calls=70)] * 3}
    found = compare(records, "arpo", "executed")
    assert found is not None
    assert found.num_seeds == 3
    assert compare(records, "aepo", "executed") is None


def test_a_chain_that_learned_nothing_is_no_yardstick() -> None:
    records = {"chain": [run_of(0.4, 0.4)], "ours": [run_of(0.4, 0.5)]}
    assert compare(records, "ours", "executed") is None
    assert math.isnan(figures(records)["calls_ratio_vs_grpo"])


def test_entropy_minus_uniform_has_its_sign_and_is_taken_at_equal_calls() -> None:
    dear, cheap = run_of(0.4, 0.6, 0.8, calls=100), run_of(0.4, 0.6, 0.8, calls=50)
    found = above({"arpo": [dear] * 3, "uniform": [cheap] * 3}, "arpo", "uniform")
    assert found is not None
    assert np.allclose(found, -0.1)  # up to 100 calls: 0.5 on average, against 0.6
    assert figures({"uniform": [dear], "arpo": [cheap]})["entropy_minus_uniform"] == pytest.approx(0.1)


def test_the_page_says_what_was_reached_and_by_whom() -> None:
    records = {
        "chain": [run_of(0.4, 0.6, 0.8)] * 3,
        "ours": [run_of(0.4, 0.8, calls=50)] * 3,
        "dapo": [run_of(0.4, 0.5)] * 3,
        "ours_blind": [run_of(0.4, 0.6, calls=50)],
    }
    found = sections({**records, "chain+cache": records["chain"]})
    assert [section.key for section in found] == ["calls", "calls-cache"]
    assert "ours needed 0.25 (0.25 to 0.25) times the executed calls of chain; it ended at 80.0 %" in " ".join(
        found[0].sentences
    )
    rows = {row[0]: row for row in found[0].tables[0].rows}
    assert rows["dapo"][5:8] == ("not reached", "not reached (not reached to not reached)", "3 of 3")
    assert found[0].sentences[-1].endswith("(ours_blind), by too few seeds for an interval.")
    assert len(found[0].figures) == 2


# -- one run ----------------------------------------------------------------------------------------------------------


def rows_of(counts: Sequence[int]) -> list[StepMetrics]:
    zeros = {
        name: 0
        for name in StepMetrics.__struct_fields__
        if name.startswith("num_") or name in ("version", "staleness", "reward", "success", "tool_s", "loss")
    }
    floats = dict.fromkeys(("grad_norm", "entropy", "kl_rollout", "ratio_max", "clip_fraction"), 0.0)
    return [
        StepMetrics(
            **{**zeros, "num_tool_calls_executed": count, "num_tool_calls_requested": 2 * count},
            **floats,
            step=step,
            t=10.0 * step,
            step_s=1.0,
            wait_s=2.0,
        )
        for step, count in enumerate(counts, 1)
    ]


def test_a_record_sums_what_was_spent_up_to_each_measurement() -> None:
    events = [Evaluated(step=s, version=s, metrics={"success": v}) for s, v in ((0, 0.4), (2, 0.6), (3, 0.5))]
    record = record_of(rows_of([5, 7, 11]), events)
    assert [record[f"executed@{step}"] for step in (0, 2, 3)] == [0.0, 12.0, 23.0]
    assert [record[f"requested@{step}"] for step in (0, 2, 3)] == [0.0, 24.0, 46.0]
    assert (record["executed"], record["steps"], record["success"], record["success_before"]) == (23.0, 3.0, 0.5, 0.4)
    assert record["wall_s"] == 23.0, "from when the first batch was waited for"


def test_a_run_that_fails_is_an_error_with_the_end_of_its_output(tmp_path: Path) -> None:
    with Leash() as leash, pytest.raises(LearnerError, match=r"exit code 2(.|\n)*unknown field `stepps`"):
        train_once(CONFIG, ["train.stepps=3"], folder=tmp_path, name="wrong", leash=leash)


@pytest.mark.real
def test_a_run_that_hangs_is_ended_behind_its_deadline(tmp_path: Path) -> None:
    with Leash() as leash, pytest.raises(StalledError, match=r"did not end within 0.5 s"):
        train_once(CONFIG, QUICK, folder=tmp_path, name="slow", leash=leash, limit_s=0.5)


@pytest.mark.real
def test_runs_end_when_their_leash_is_cut(tmp_path: Path) -> None:
    leash = Leash()
    cut = threading.Timer(1.0, leash.cut)
    cut.start()
    try:
        with pytest.raises(LearnerError, match="ended with exit code"):
            train_once(CONFIG, QUICK, folder=tmp_path, name="cut", leash=leash, limit_s=60)
    finally:
        cut.join()


@pytest.mark.real
def test_a_quick_bench_runs_and_is_not_run_again(tmp_path: Path) -> None:
    lines: list[str] = []
    found = harness.run_bench("tool-budget", is_quick=True, on_progress=lines.append, records=tmp_path)
    assert set(found.arms) == {"chain", "ours"}
    assert {"calls_ratio_vs_grpo", "calls_ratio_ci_high", "success_ours", "success_grpo"} <= set(found.figures)
    chain, ours = (found.arms[arm].median for arm in ("chain", "ours"))
    assert 0 < chain["executed"] <= chain["requested"], "what cannot be read is asked for, and not executed"
    assert ours["steps"] == chain["steps"] == 2
    again = harness.run_bench("tool-budget", is_quick=True, on_progress=lines.append, records=tmp_path)
    assert again == replace(found, wall_s=again.wall_s)
    assert [line.endswith("(kept)") for line in lines[-2:]] == [True, True]
