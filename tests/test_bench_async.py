"""`arpo bench async`: bounds that are bounds, timelines that add up, and control flows that wait for what they say."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.bench import async_bench, harness, simulated_training, simulation
from actors.bench.bench import measure
from actors.bench.bounds import SLOT, WORKER, Piece, Plan, blind_s, bounds, plan_of
from actors.bench.simulated_training import Training
from actors.bench.workload import Law, Workload
from engine.clock import run_virtual
from engine.inference.scripted import Script
from engine.outlook import Outlook
from engine.tree import TreeBuilder
from engine.types import GenerateRequest

SMALL = Law(num_prompts=8, num_slots=8, num_workers=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workload")


class Answers(Workload):
    """A policy that calls no tool and answers at once: all batches take equally long."""

    def script(self, request: GenerateRequest) -> Script:
        return Script(token_ids=self.answer, token_s=self.law.token_s)

    def latency_s(self, query: str) -> float:
        raise AssertionError("nobody calls")


@pytest.fixture
def answers(folder: Path) -> Answers:
    return Answers(Law(num_prompts=8, num_slots=1000), seed=0, folder=folder)


# -- bounds -----------------------------------------------------------------------------------------------------------


def piece(name: str, turn: int, kind: int) -> Piece:
    return (name, 0, turn, kind)


def two_paths() -> Plan:
    """One calls for 9 s, the other for 1 s, and both answer for 1 s, with one slot and one worker."""
    plan = Plan()
    for name, call_s in (("short", 1.0), ("long", 9.0)):
        plan.add(piece(name, 0, SLOT), 1.0, after=[])
        plan.add(piece(name, 0, WORKER), call_s, after=[piece(name, 0, SLOT)])
        plan.add(piece(name, 1, SLOT), 1.0, after=[piece(name, 0, WORKER)])
    return plan


def test_list_scheduling_serves_the_smallest_rank_first() -> None:
    plan = two_paths()
    remaining_s = plan.remaining_s()
    assert remaining_s[piece("long", 0, SLOT)] == 11.0
    assert remaining_s[piece("short", 0, WORKER)] == 2.0
    assert plan.schedule_s((1, 1), rank=lambda one: -remaining_s[one]) == 12.0, "1, 9, and 1 s of the short one's call"
    assert plan.schedule_s((1, 1), rank=lambda one: remaining_s[one]) == 12.0
    assert plan.schedule_s((2, 2), rank=lambda one: remaining_s[one]) == 11.0, "nobody waits"


def test_the_longest_first_ends_sooner_than_the_shortest_first() -> None:
    plan = Plan()
    for number, seconds in enumerate((1.0, 1.0, 2.0)):
        plan.add(("p", number, 0, WORKER), seconds, after=[])
    assert plan.schedule_s((1, 2), rank=lambda one: -plan.seconds[one]) == 2.0
    assert plan.schedule_s((1, 2), rank=lambda one: plan.seconds[one]) == 3.0


def test_a_blind_order_begins_the_long_call_anywhere() -> None:
    """Of four calls on two workers the long one begins at 0, 0, 1 or 1."""
    assert blind_s([3.0, 1.0, 1.0, 1.0], num_workers=2) == pytest.approx(3.5, abs=0.3)
    assert blind_s([2.0] * 6, num_workers=3) == 4.0
    assert blind_s([], num_workers=3) == 0.0


def grown(workload: Workload, *, outlook: Outlook | None = None) -> list[TreeBuilder]:
    async def main() -> list[TreeBuilder]:
        return await simulation.Neighbours(workload).grow_all(workload.prompts(), outlook=outlook)

    return run_virtual(main())


def test_a_plan_holds_the_work_that_was_done_piece_by_piece(folder: Path) -> None:
    workload = Workload(SMALL, seed=0, folder=folder, is_watched=True)
    trees = grown(workload)
    plan = plan_of(trees, token_s=SMALL.token_s)
    for kind, what in ((SLOT, "slots"), (WORKER, "workers")):
        ours = sorted(seconds for (*_, found), seconds in plan.seconds.items() if found == kind)
        theirs = sorted(end - begin for begin, end in workload.occupied[what])
        assert ours == pytest.approx(theirs)
    longest_s = max(simulation.critical_s(workload, tree) for tree in trees)
    assert max(plan.remaining_s().values()) >= longest_s - 1e-9, "supplements also wait for the paths before them"


def test_a_branch_waits_for_its_parents_call_and_a_supplement_for_all_paths_before_it(
    folder: Path, answers: Answers
) -> None:
    kinds: set[str] = set()
    for tree in [*grown(Workload(SMALL, seed=0, folder=folder)), *grown(answers)]:
        plan = plan_of([tree], token_s=SMALL.token_s)
        for path in tree.paths:
            turn = sum(mark.length <= path.fork_length for mark in path.marks)
            first = (tree.prompt.prompt_id, path.number, turn, SLOT)
            before = [one for one, others in plan.behind.items() if first in others]
            if path.forked_from >= 0:
                assert before == [(tree.prompt.prompt_id, path.forked_from, turn - 1, WORKER)]
            else:
                assert len(before) == (path.number if path.is_supplement else 0)
            kinds.add("branch" if path.forked_from >= 0 else "supplement" if path.is_supplement else "first")
    assert kinds == {"branch", "supplement", "first"}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_beats_the_bound_with_or_without_foresight(folder: Path, seed: int) -> None:
    workload = Workload(SMALL, seed=seed, folder=folder)
    record = simulation.engine_rollout(workload)
    assert record["bound_s"] <= record["clairvoyant_s"] + 1e-9
    assert record["bound_s"] <= record["makespan_s"] + 1e-9
    assert record["fraction_of_blind"] == pytest.approx(record["blind_s"] / record["makespan_s"])


def test_bounds_are_the_largest_of_what_binds() -> None:
    found = bounds(two_paths(), num_slots=1, num_workers=2, longest_s=11.0)
    assert found == {"bound_s": 11.0, "clairvoyant_s": 11.0, "blind_s": 9.0}
    assert bounds(two_paths(), num_slots=1, num_workers=1, longest_s=3.0)["bound_s"] == 10.0, "the worker's seconds"


# -- timelines --------------------------------------------------------------------------------------------------------


def test_a_timeline_adds_up_to_the_work_and_goes_into_the_report(folder: Path) -> None:
    bench = async_bench.simulated(msgspec.structs.replace(SMALL, num_prompts=4), folder, repetitions=1)
    report = harness.report("async", [bench], on_progress=lambda line: None)
    assert set(report.timelines) == set(report.arms)
    for arm, (timeline,) in report.timelines.items():
        (record,) = report.arms[arm].records
        assert timeline.seconds == record["makespan_s"]
        for what in ("slots", "workers"):
            shares = timeline.busy[what]
            assert len(shares) == simulation.NUM_PARTS
            assert 0.0 <= min(shares) <= max(shares) <= 1.0 + 1e-9
            assert np.mean(shares) == pytest.approx(record[f"{what}_busy"], rel=1e-6), (arm, what)
    assert b'"timelines"' in msgspec.json.encode(report)


# -- training ---------------------------------------------------------------------------------------------------------


def batch_s(answers: Answers) -> float:
    """First paths behind their leader, and the supplements behind them: nobody forks."""
    return 3 * len(answers.answer) * answers.law.token_s


def test_a_barrier_at_each_step_adds_generation_and_training_up(answers: Answers) -> None:
    training = Training(batch_size=2, step_s=3.0, publish_s=0.5)
    found = simulated_training.barrier_per_step(answers, training)
    assert found["makespan_s"] == pytest.approx(4 * (batch_s(answers) + 3.0 + 0.5), abs=0.02)


def test_one_step_off_hides_generation_behind_the_step_before_and_no_publication(answers: Answers) -> None:
    training = Training(batch_size=2, step_s=3.0, publish_s=0.5)
    found = simulated_training.one_step_off(answers, training)
    assert found["makespan_s"] == pytest.approx(batch_s(answers) + 4 * (3.0 + 0.5), abs=0.02)


def test_every_control_flow_trains_on_all_prompts(folder: Path) -> None:
    """Equal work in law: none of them leaves a batch out."""
    law, training = msgspec.structs.replace(SMALL, num_prompts=4), Training(batch_size=1, step_s=1.0)
    runs = (
        simulated_training.engine_training,
        simulated_training.barrier_per_step,
        simulated_training.one_step_off,
        simulated_training.barrier_training,
    )
    work = [run(Workload(law, seed=0, folder=folder), training)["slot_s"] for run in runs]
    assert max(work) < 1.1 * min(work)


def test_the_order_is_worth_nothing_where_nobody_waits(folder: Path) -> None:
    law = Law(num_prompts=4, num_slots=1000, num_workers=1000)
    bench = async_bench.simulated(law, folder, repetitions=1)
    records = measure(bench, on_progress=lambda line: None)
    assert records["engine"][0]["makespan_s"] == records["engine_longest_expected"][0]["makespan_s"]
    assert bench.figures(records)["speedup_of_longest_expected"] == 1.0
