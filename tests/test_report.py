"""The numbers of a report, against ones worked out by hand: intervals, entropy, forks, success, time."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.report import intervals
from actors.report.entropy import FIRST_SEGMENT, by_distance, contrast, stretches
from actors.report.fold import read_record
from actors.report.forks import Place, report_forks
from actors.report.intervals import UNKNOWN, Estimate, difference, estimates, ratio, resampled, wilson
from actors.report.record import RunRecord, Span
from actors.report.success import measured, outcomes
from actors.report.timing import (
    PUBLISHING,
    REST,
    STEPPING,
    UNNAMED,
    WAITING,
    Share,
    generate_seconds,
    measure,
    phase_shares,
    union,
)
from engine.errors import JournalError
from engine.events import (
    AnyEvent,
    ControlEvaluated,
    Evaluated,
    GeneratorsMeasured,
    GroupRefused,
    PathStarted,
    PhaseStarted,
    RunFinished,
    RunStarted,
    SupervisedStep,
)
from tests.report_runs import PROMPT, Story, report, step

PROMPT_LENGTH = len(PROMPT)
REPORT = Path(__file__).resolve().parent.parent / "actors" / "report"


def example(name: str, *, version: int = 0) -> list[AnyEvent]:
    """Path 0: two tokens, a search of 3, a probe of two | 0.5. Path 2 forks at `|` and calls python. Path 1: alone."""
    story = Story(name, version).start(0).start(1).sample(0, 1.0, 1.0).call(0, "search", size=3).sample(0, 4.0, 2.0)
    story.consider(0, observation=1, length=9, is_wanted=True)
    story.fork(0, 2, length=9, num_inherited_calls=1).sample(0, 0.5).end(0, 1.0)
    story.sample(2, 0.25, 0.25).call(2, "python", size=1).sample(2, 3.0)
    story.consider(2, observation=2, length=13, is_wanted=False).end(2, 0.0)
    return story.sample(1, 2.0).end(1, 1.0).finish()


def simple(name: str, *scores: float, version: int = 0) -> list[AnyEvent]:
    """Independent paths of one token each."""
    story = Story(name, version)
    for path, score in enumerate(scores):
        story.start(path).sample(path, 1.0).end(path, score)
    return story.finish()


def forked(name: str, roots: list[float], branches: list[float]) -> list[AnyEvent]:
    """Paths from the prompt with one executed search each; all branches leave path 0 behind it."""
    story = Story(name)
    for path, score in enumerate(roots):
        story.start(path).sample(path, 1.0).call(path, "search", size=1).sample(path, 1.0, 1.0).end(path, score)
    for child, score in enumerate(branches, start=len(roots)):
        story.fork(0, child, length=PROMPT_LENGTH + 3, num_inherited_calls=1).sample(child, 1.0).end(child, score)
    return story.finish()


def record_of(*events: AnyEvent) -> RunRecord:
    return read_record(events)


# -- intervals ----------------------------------------------------------------------------------------------------


def test_wilson_is_the_textbook_one() -> None:
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    found = [wilson(k / n, n) for k, n in ((81, 263), (15, 148), (0, 20), (1, 29))]
    assert [(round(e.low, 4), round(e.high, 4)) for e in found] == [
        (0.2553, 0.3662),
        (0.0624, 0.1605),
        (0.0, 0.1611),
        (0.0061, 0.1718),
    ]
    assert not wilson(0.5, 0).is_known


def test_a_difference_of_shares_is_newcombes() -> None:
    # Newcombe (1998), the other paper, table II, method 10: 9/10 - 3/10 and 10/10 - 0/20.
    first = difference(wilson(0.3, 10), wilson(0.9, 10))
    second = difference(wilson(0.0, 20), wilson(1.0, 10))
    assert [round(x, 4) for x in first] == [0.6, 0.1705, 0.8090]
    assert [round(x, 4) for x in second] == [1.0, 0.6791, 1.0]


def test_equal_trees_leave_nothing_to_doubt_and_one_tree_gives_no_interval() -> None:
    first, second, quotient = ratio(np.array([[6.0, 2.0]] * 3), np.array([[3.0, 4.0]] * 3))
    assert (first, second, quotient) == (Estimate(2, 2, 2), Estimate(0.5, 0.5, 0.5), Estimate(4, 4, 4))
    alone = ratio(np.array([[6.0, 2.0]]), np.array([[3.0, 4.0]]))
    assert [e.value for e in alone] == [2.0, 0.5, 4.0]
    assert not any(e.has_interval for e in alone)


def test_whole_trees_are_resampled_not_tokens() -> None:
    # Two trees of a hundred tokens each, one all 0, one all 1: a resample has mean 0, 0.5 or 1, and nothing between.
    means_X, draws_BX = resampled(np.array([[0.0], [100.0]]), np.array([[100.0], [100.0]]))
    assert means_X.tolist() == [0.5]
    assert set(draws_BX[:, 0].tolist()) == {0.0, 0.5, 1.0}
    assert estimates(means_X, draws_BX) == [Estimate(0.5, 0.0, 1.0)]


def test_resamples_that_miss_a_place_say_nothing_about_it() -> None:
    # One tree of five has the first place, which a resample misses with probability (4/5)^5 = 0.33; none has the other.
    sums, counts = np.zeros((2, 5, 2))
    sums[0], counts[0] = (3.0, 0.0), (1.0, 0.0)
    present, absent = estimates(*resampled(sums, counts))
    assert present == Estimate(3.0, 3.0, 3.0)
    assert math.isnan(absent.value)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 9)), min_size=2, max_size=8))
def test_the_mean_lies_within_its_interval_wherever_trees_weigh_alike(trees: list[tuple[float, int]]) -> None:
    sums = np.array([[value * 4] for value, _ in trees])
    (found,) = estimates(*resampled(sums, np.full((len(trees), 1), 4.0)))
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9
    assert min(v for v, _ in trees) - 1e-9 <= found.low <= found.high <= max(v for v, _ in trees) + 1e-9


# -- entropy ------------------------------------------------------------------------------------------------------


def test_entropy_by_distance_counts_shared_tokens_once() -> None:
    record = record_of(*(event for number in range(20) for event in example(f"p{number}")))
    grown = [stretches(tree) for tree in record.trees]

    def means(source: str) -> list[float]:
        return [e.value for e in by_distance(grown, source) if e.is_known]

    assert means("search") == [4.0, 2.0, 0.375, 0.25]
    assert means("python") == [3.0]
    assert means(FIRST_SEGMENT) == [1.5, 1.0]


def test_a_distance_with_few_tokens_is_not_reported() -> None:
    grown = [stretches(tree) for tree in record_of(*example("p")).trees]
    assert by_distance(grown, "search") == [UNKNOWN] * 20


def test_the_probe_against_the_rest_of_the_same_trajectories() -> None:
    grown = [stretches(tree) for tree in record_of(*example("p"), *example("q"), *simple("r", 0.0, 1.0)).trees]
    search, python = (contrast(grown, tool, probe_tokens=2) for tool in ("search", "python"))
    # Elsewhere: 1 1 | .5 | .25 .25; the token behind python is in a probe, and path 1 and r never searched.
    assert search.behind == Estimate(3, 3, 3)
    assert search.elsewhere.value == pytest.approx(0.6)
    assert search.ratio.value == pytest.approx(5.0)
    assert (search.num_behind, search.num_elsewhere, search.num_trees) == (4, 10, 2)
    # Only path 2 called python, so path 0's tail is not of its trajectories.
    assert python.behind.value == 3.0
    assert python.elsewhere.value == pytest.approx(2.5 / 4)
    both = contrast(grown, None, probe_tokens=2)
    assert both.behind.value == pytest.approx(9 / 3)
    assert both.elsewhere.value == pytest.approx(0.6)


def test_a_probe_that_a_fork_cuts_is_one_probe() -> None:
    # Four tokens behind the result, a branch after the second: k = 3 takes the third of both ends.
    story = Story("p").start(0).sample(0, 0.0).call(0, "search", size=1).sample(0, 8.0, 4.0)
    story.fork(0, 1, length=PROMPT_LENGTH + 4, num_inherited_calls=1)
    events = story.sample(0, 2.0, 0.0).end(0, 1.0).sample(1, 6.0, 0.0).end(1, 0.0).finish()
    found = contrast([stretches(record_of(*events).trees[0])], "search", probe_tokens=3)
    assert (found.behind.value, found.num_behind) == (5.0, 4)
    assert (found.elsewhere.value, found.num_elsewhere) == (0.0, 3)


def test_a_shared_token_belongs_to_the_trajectories_of_every_path_through_it() -> None:
    # Python comes only behind the fork, on the parent's side; the first token and the probe are of its trajectory too.
    story = Story("p").start(0).sample(0, 1.0).call(0, "search", size=1).sample(0, 4.0)
    story.fork(0, 1, length=PROMPT_LENGTH + 3, num_inherited_calls=1)
    story.sample(0, 2.0).call(0, "python", size=1).sample(0, 8.0).end(0, 1.0)
    tree = stretches(record_of(*story.sample(1, 5.0).end(1, 0.0).finish()).trees[0])
    found = contrast([tree], "python", probe_tokens=1)
    assert (found.behind.value, found.elsewhere.value, found.num_elsewhere) == (8.0, 1.5, 2)


# -- forks --------------------------------------------------------------------------------------------------------


def test_a_fork_is_placed_priced_and_judged() -> None:
    found = report_forks(record_of(*example("p"), *example("q")).trees)
    first, second = found.places
    assert first.places == {Place(1, "search")}
    assert (first.num_considered, first.num_wanted, first.num_granted) == (2, 2, 2)
    assert (first.mixed.value, first.executed, first.inherited) == (1.0, 1.0, 7.0)
    assert second.places == {Place(2, "python")}
    assert (second.num_considered, second.num_wanted, second.num_granted) == (2, 0, 0)
    assert not second.mixed.is_known
    assert (found.total.num_considered, found.total.num_granted, found.total.calls_per_mixed) == (4, 2, 1.0)
    # Paths 0 and 1 began at the prompt, were both right, and executed one call and none.
    assert (found.roots.mixed.value, found.roots.executed) == (0.0, 0.5)
    assert math.isnan(found.roots.calls_per_mixed)
    assert not found.price.is_known


def test_pairs_from_the_prompt_weigh_as_much_as_their_tree_has_forks() -> None:
    few, many = forked("p", [1.0, 1.0], [1.0]), forked("q", [1.0, 0.0], [0.0, 0.0, 1.0])
    found = report_forks(record_of(*few, *many, *simple("r", 0.0, 1.0)).trees)
    assert found.roots.mixed.value == pytest.approx((0 * 1 + 1 * 3) / 4)
    assert found.total.mixed.value == pytest.approx(2 / 4)
    assert (found.total.executed, found.roots.executed) == (0.0, 1.0)


def test_the_price_of_a_mixed_pair_is_compared_tree_by_tree() -> None:
    # Two branches with a call each, one of them mixed; two mixed paths from the prompt with a call each: 2 against 1.
    story = Story("p").start(0).sample(0, 1.0).call(0, "search", size=1).sample(0, 1.0, 1.0).end(0, 1.0)
    story.start(1).sample(1, 1.0).call(1, "search", size=1).end(1, 0.0)
    for child, score in ((2, 1.0), (3, 0.0)):
        story.fork(0, child, length=PROMPT_LENGTH + 3, num_inherited_calls=1).sample(child, 1.0)
        story.call(child, "search", size=1).end(child, score)
    other = [msgspec.structs.replace(event, prompt_id="q") for event in story.finish()]  # type: ignore[call-arg]
    found = report_forks(record_of(*story.events, *other).trees)
    assert (found.total.calls_per_mixed, found.roots.calls_per_mixed) == (2.0, 1.0)
    assert found.price == Estimate(2.0, 2.0, 2.0)


def test_a_failed_trajectory_makes_no_pair_and_a_cached_call_costs_nothing() -> None:
    story = Story("p").start(0).sample(0, 1.0).call(0, "search", size=1, is_cached=True).sample(0, 1.0).end(0, 1.0)
    story.fork(0, 1, length=PROMPT_LENGTH + 2, num_inherited_calls=1).sample(1, 1.0).end(1, 0.0, status="failed")
    found = report_forks(record_of(*story.finish()).trees)
    assert (found.total.num_granted, found.total.mixed.is_known) == (1, False)
    assert found.roots.executed == 0.0


def test_an_outcome_that_every_tree_shares_is_not_taken_for_certain() -> None:
    found = report_forks(record_of(*forked("p", [1.0, 1.0], [0.0]), *forked("q", [1.0, 1.0], [0.0])).trees)
    assert found.total.mixed == wilson(1.0, 2)
    assert found.total.mixed.low < 0.5


def test_many_places_are_cut_to_the_most_used() -> None:
    story = Story("p").start(0)
    for number in range(14):
        story.sample(0, 1.0).call(0, f"tool{number}", size=1).sample(0, 1.0)
        length = PROMPT_LENGTH + 3 * (number + 1)
        story.consider(0, observation=number + 1, length=length, is_wanted=True)
    found = report_forks(record_of(*story.end(0, 1.0).finish()).trees)
    assert [place.observation for worth in found.places for place in worth.places] == list(range(1, 11))
    assert found.others is not None
    assert (found.others.num_considered, found.total.num_considered) == (4, 14)


# -- success ------------------------------------------------------------------------------------------------------


def test_refused_groups_count_in_what_a_step_sampled() -> None:
    record = record_of(
        *simple("a", 1.0, 0.0),
        *simple("b", 1.0, 1.0),
        GroupRefused(prompt_id="b", reason="no learning signal"),
        *step(1, "a", t=3.0),
        *example("c", version=1),
        *step(2, "c", t=6.0),
        *simple("d", 0.0, 0.0),
    )
    first, second = outcomes(record)
    assert (first.num_trajectories, first.success, first.refused) == (4, 0.75, 0.5)
    assert (second.success, second.reward, second.refused) == (2 / 3, 2 / 3, 0.0)
    # Paths saw 1, 0 and 2 calls; two were executed for three trajectories.
    assert (second.calls, second.executed) == (1.0, 2 / 3)
    assert [(t.trained_in, t.is_refused) for t in record.trees] == [(1, False), (None, True), (2, False), (None, False)]


def test_a_measurement_has_an_interval_where_questions_were_counted() -> None:
    assert measured({"success": 0.9, "questions": 100.0}) == wilson(0.9, 100)
    assert not measured({"success": 0.9}).has_interval
    assert not measured({"score": 0.9}).is_known


# -- time ---------------------------------------------------------------------------------------------------------


def test_phases_last_until_the_next_one_or_the_end_of_their_process() -> None:
    record = record_of(
        RunStarted(run="r", config_digest="", t=0.0),
        PhaseStarted(name="cold start", t=1.0),
        PhaseStarted(name="reinforcement learning", t=4.0),
        Evaluated(step=0, version=0, metrics={}, t=6.0),
        RunStarted(run="r", config_digest="", resumed=1, t=7.0),
        PhaseStarted(name="start", t=8.0),
        PhaseStarted(name="reinforcement learning", t=9.0),
        RunFinished(t=20.0),
    )
    assert phase_shares(record) == [
        Share("cold start", 3.0),
        Share("reinforcement learning", 2.0 + 11.0),
        Share("start", 1.0),
        Share(UNNAMED, 1.0 + 2.0),
    ]


def test_the_time_of_training_is_divided_among_what_the_learner_did() -> None:
    record = record_of(
        PhaseStarted(name="reinforcement learning", t=10.0),
        *simple("a", 1.0, 0.0),
        *step(1, "a", t=15.0, wait_s=3.0, publish_s=0.5),
        *simple("b", 1.0, 0.0),
        *step(2, "b", t=19.0, wait_s=1.0, publish_s=1.0),
        PhaseStarted(name="control", t=21.0),
        RunFinished(t=30.0),
    )
    timing = measure(record)
    assert timing.training_s == 11.0
    assert timing.learner == [Share(STEPPING, 4.0), Share(PUBLISHING, 1.5), Share(WAITING, 4.0), Share(REST, 1.5)]
    assert [(r.unit, r.amount, r.per_second) for r in timing.rates] == [
        ("tokens trained", 20, 5.0),
        ("tokens computed", 60, 15.0),
        ("tokens of paths", 80, 20.0),
    ]


def test_generators_start_from_zero_in_every_process_and_count_while_training() -> None:
    def level(t: float, busy_s: float, tokens: int) -> GeneratorsMeasured:
        return GeneratorsMeasured(t=t, busy_s=busy_s, num_sampled_tokens=tokens)

    record = record_of(
        RunStarted(run="r", config_digest="", t=0.0),
        PhaseStarted(name="cold start", t=1.0),
        SupervisedStep(report=report(1), t=1.5),
        PhaseStarted(name="start", t=2.0),
        PhaseStarted(name="evaluation before", t=3.0),
        level(5.0, 4.0, 100),
        PhaseStarted(name="reinforcement learning", t=5.0),
        *simple("a", 1.0, 0.0),
        *step(1, "a", t=8.0),
        level(8.5, 6.0, 160),
        RunStarted(run="r", config_digest="", resumed=1, t=9.0),
        PhaseStarted(name="reinforcement learning", t=9.0),
        level(10.0, 1.0, 30),
        *simple("b", 1.0, 0.0),
        *step(2, "b", t=12.0),
        level(12.0, 1.5, 50),
    )
    assert [(level.t, level.busy_s) for level in record.generators] == [
        (2.0, 0.0),
        (5.0, 4.0),
        (8.5, 6.0),
        (9.0, 6.0),
        (10.0, 7.0),
        (12.0, 7.5),
    ]
    timing = measure(record)
    assert timing.generators_busy_s == (6.0 - 4.0) + 1.5
    (rate,) = [rate for rate in timing.rates if rate.part == "generators"]
    assert (rate.amount, rate.per_second) == (60 + 50, 110 / 3.5)
    # By step 1, at 8, the busy seconds had grown from 4 at 5 towards 6 at 8.5; nothing was measured from there to 9.
    assert generate_seconds(record) == pytest.approx([2 * 3 / 3.5, 2 * 0.5 / 3.5 + 1.5])


def test_tools_are_busy_while_any_executed_call_is_under_way() -> None:
    story = Story("a").start(0).start(1)
    for path, t, is_cached in ((0, 4.0, False), (1, 5.0, False), (0, 9.0, True)):
        story.t = t
        story.sample(path, 1.0).call(path, "search", size=1, duration_s=2.0, is_cached=is_cached)
    story.sample(0, 1.0).end(0, 1.0).end(1, 0.0)
    record = record_of(PhaseStarted(name="rl", t=0.0), *story.finish(), *step(1, "a", t=12.0))
    timing = measure(record)
    assert timing.tools_busy_s == 3.0
    assert [(r.amount, r.busy_s) for r in timing.rates if r.part == "tools"] == [(2, 3.0)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=8))
def test_a_union_covers_each_second_once(spans: list[tuple[int, int]]) -> None:
    covered = {second for start, length in spans for second in range(start, start + length)}
    assert union([Span(start, start + length) for start, length in spans]) == len(covered)


# -- the fold -----------------------------------------------------------------------------------------------------


def test_supervised_steps_told_again_by_a_resumed_run_are_one_curve() -> None:
    def told(name: str, *losses: float) -> list[AnyEvent]:
        steps = [SupervisedStep(report=report(i, loss=loss)) for i, loss in enumerate(losses, 1)]
        return [PhaseStarted(name=name), *steps]

    record = record_of(
        *told("cold start", 3.0, 2.0),
        RunStarted(run="r", config_digest="", resumed=1),
        *told("cold start", 3.0, 2.0, 1.0),
        RunStarted(run="r", config_digest="", resumed=2),
        *told("cold start, made earlier", 3.0, 2.0, 1.0),
        PhaseStarted(name="reinforcement learning"),
        *told("control", 1.0, 0.5),
        ControlEvaluated(num_steps=2, metrics={"success": 0.5}),
    )
    assert [(c.phase, [r.loss for r in c.reports]) for c in record.curves] == [
        ("cold start", [3.0, 2.0, 1.0]),
        ("control", [1.0, 0.5]),
    ]
    assert record.control is not None


def test_trees_that_still_grow_are_counted_and_left_out() -> None:
    record = record_of(*simple("a", 1.0), *Story("b").start(0).sample(0, 1.0).events)
    assert ([tree.group.prompt.prompt_id for tree in record.trees], record.num_unfinished) == (["a"], 1)


def test_an_event_of_a_prompt_that_was_never_admitted_is_an_error() -> None:
    with pytest.raises(JournalError, match="an event of x"):
        record_of(PathStarted(prompt_id="x", path=0))


def test_resampling_is_the_same_every_time() -> None:
    table = np.arange(12.0).reshape(6, 2)
    one, other = (resampled(table, np.ones((6, 2)))[1] for _ in range(2))
    assert one.shape == (intervals.NUM_RESAMPLES, 2)
    assert np.array_equal(one, other)
