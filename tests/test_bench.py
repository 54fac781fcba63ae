"""Benches: the harness takes turns, the released control flow is faithful, and the engine beats it on equal work."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.bench import NAMES, async_bench, decode_bench, harness, simulation
from actors.bench.barrier import BarrierRollout
from actors.bench.bench import Bench, Record, arm_report, measure, median_of, median_ratio
from actors.bench.decode import make_bench_model
from actors.bench.overlap import CONFIG, timings
from actors.bench.prefill import count_prefill
from actors.bench.workload import Law, Workload
from actors.config import Config
from engine import config as configuration
from engine.clock import run_virtual
from engine.errors import ConfigError
from engine.events import AnyEvent, BatchTaken, StepFinished, WeightsPublished
from engine.inference.scripted import Script
from engine.reports import StepReport
from engine.types import GenerateRequest, SamplingParams


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workload")


# -- the harness ------------------------------------------------------------------------------------------------------


def counting(trace: list[tuple[str, int]], name: str) -> Callable[[int], Record]:
    def arm(seed: int) -> Record:
        trace.append((name, seed))
        return {"wall_s": float(len(trace))}

    return arm


def test_arms_take_turns_and_meet_the_same_seeds() -> None:
    trace: list[tuple[str, int]] = []
    arms = {name: counting(trace, name) for name in "abc"}
    records = measure(Bench(name="x", arms=arms, repetitions=2, figures=lambda _: {}), on_progress=lambda line: None)
    assert trace == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1)]
    assert records["b"] == [{"wall_s": 2.0}, {"wall_s": 5.0}]


def test_medians_and_extremes_are_taken_by_name_over_repetitions() -> None:
    report = arm_report([{"s": 4.0, "n": 1.0}, {"s": 1.0, "n": 7.0}, {"s": 2.0, "n": 3.0}])
    assert (report.median, report.min, report.max) == ({"s": 2.0, "n": 3.0}, {"s": 1.0, "n": 1.0}, {"s": 4.0, "n": 7.0})
    assert report.rows["s"] == "2  (1 to 4)"


def test_a_ratio_is_the_median_of_pairs_not_the_ratio_of_medians() -> None:
    records = {"a": [{"s": 1.0}, {"s": 8.0}, {"s": 9.0}], "b": [{"s": 1.0}, {"s": 2.0}, {"s": 9.0}]}
    assert median_ratio(records, "a", "b", of="s") == 1.0
    assert median_of(records, "a", "s") == 8.0


def test_a_report_is_json_with_the_keys_of_the_contract() -> None:
    parts = [
        Bench(name=name, arms={name: counting([], name)}, repetitions=2, figures=lambda r: {f"num_{n}": 2.0 for n in r})
        for name in ("one", "two")
    ]
    lines: list[str] = []
    found = json.loads(msgspec.json.encode(harness.report("x", parts, on_progress=lines.append)))
    assert list(found) == ["bench", "machine", "figures", "arms", "wall_s"]
    assert found["wall_s"] >= 0
    assert found["bench"] == "x"
    assert found["figures"] == {"num_one": 2.0, "num_two": 2.0}
    assert found["arms"]["two"]["records"] == [{"wall_s": 1.0}, {"wall_s": 2.0}]
    assert found["arms"]["two"]["median"] == {"wall_s": 1.5}
    assert set(found["machine"]) == {"cpu", "cores", "torch", "omp_threads"}
    assert len(lines) == 4


def test_an_unknown_bench_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no bench 'speed': decode, async"):
        harness.run_bench("speed", is_quick=True, on_progress=lambda line: None)


# -- the released control flow ----------------------------------------------------------------------------------------


class Planned(Workload):
    """The workload, except that every path makes `num_calls` calls; remembers what was asked, and how long it took."""

    def __init__(self, law: Law, *, folder: Path, num_calls: int, seed: int = 0) -> None:
        super().__init__(law, seed=seed, folder=folder)
        self.num_calls = num_calls
        self.asked: dict[str, float] = {}

    def script(self, request: GenerateRequest) -> Script:
        turn = int(np.count_nonzero(request.token_ids == self.result_end))
        end = self.call(request.sampling.seed, turn) if turn < self.num_calls else self.answer
        return Script(token_ids=end, token_s=self.law.token_s)

    def latency_s(self, query: str) -> float:
        self.asked[query] = super().latency_s(query)
        return self.asked[query]


def barrier_of(workload: Workload, *, size: int = 16, branch_probability: float = 0.5) -> BarrierRollout:
    tools = workload.tools()
    return BarrierRollout(
        workload.prompts(),
        size=size,
        initial=8,
        seed=workload.seed,
        generator=workload.generator(),
        tools=tools,
        renderer=workload.renderer(tools),
        branch_probability=branch_probability,
    )


def run_barrier(workload: Workload, *, size: int = 16, branch_probability: float = 0.5) -> BarrierRollout:
    async def main() -> BarrierRollout:
        rollout = barrier_of(workload, size=size, branch_probability=branch_probability)
        await rollout.run()
        return rollout

    return run_virtual(main())


def test_without_calls_sixteen_paths_take_nine_rounds(folder: Path) -> None:
    """Eight first, then eight fresh ones, one a round: row 8 of the sheet of facts."""
    workload = Planned(Law(num_prompts=3), folder=folder, num_calls=0)
    rollout = run_barrier(workload)
    assert rollout.num_rounds == 9
    assert {len(paths) for paths in rollout.paths.values()} == {16}
    assert all(path.forked_from < 0 for paths in rollout.paths.values() for path in paths)


def test_branches_stop_at_exactly_m_in_the_order_of_numbers(folder: Path) -> None:
    """A certain coin: eight paths become sixteen behind their first result, and nobody branches behind the second."""
    workload = Planned(Law(num_prompts=2), folder=folder, num_calls=2)
    rollout = run_barrier(workload, branch_probability=1.0)
    assert rollout.num_rounds == 3
    for paths in rollout.paths.values():
        assert [path.forked_from for path in paths] == [-1] * 8 + list(range(8))
        assert [path.num_results for path in paths] == [2] * 16


def test_a_place_left_goes_to_the_path_of_the_lowest_number(folder: Path) -> None:
    workload = Planned(Law(num_prompts=1), folder=folder, num_calls=2)
    (paths,) = run_barrier(workload, size=9, branch_probability=1.0).paths.values()
    assert [path.forked_from for path in paths] == [-1] * 8 + [0]


def test_a_round_waits_for_its_slowest_call(folder: Path) -> None:
    """Two rounds: no second segment starts before the longest call is back."""
    workload = Planned(Law(num_prompts=2), folder=folder, num_calls=1, seed=3)

    async def seconds() -> float:
        await barrier_of(workload, size=8).run()
        return asyncio.get_running_loop().time()

    segments_s = (len(workload.call(0, 0)) + len(workload.answer)) * workload.law.token_s
    assert run_virtual(seconds()) == pytest.approx(segments_s + max(workload.asked.values()))
    assert len(workload.asked) == 16


# -- the workload -----------------------------------------------------------------------------------------------------


def request(workload: Workload, seed: int, *, results: int = 0) -> GenerateRequest:
    tokens = np.concatenate([workload.prompts()[0].token_ids, np.full(results, workload.result_end, np.int32)])
    sampling = SamplingParams(max_new_tokens=4096, seed=seed)
    return GenerateRequest(request_id=str(seed), token_ids=tokens, sampling=sampling)


def test_paths_make_one_to_four_calls_with_equal_probability(folder: Path) -> None:
    workload = Workload(Law(), seed=0, folder=folder)

    def num_calls(seed: int) -> int:
        for results in range(5):
            if workload.script(request(workload, seed, results=results)).token_ids[-1] == workload.answer[-1]:
                return results
        return 5

    counts = np.bincount([num_calls(seed) for seed in range(800)], minlength=6)
    assert counts[0] == counts[5] == 0
    assert counts[1:5] == pytest.approx(200, abs=50)


def test_segments_and_latencies_follow_their_laws(folder: Path) -> None:
    workload = Workload(Law(), seed=0, folder=folder)
    sizes = [len(workload.script(request(workload, seed)).token_ids) for seed in range(600)]
    assert np.median(sizes) == pytest.approx(60, rel=0.15)
    assert np.log(sizes).std() == pytest.approx(0.6, rel=0.15)
    latencies = [workload.latency_s(f"w{number}") for number in range(2000)]
    assert np.median(latencies) == pytest.approx(0.3, rel=0.15)
    assert max(latencies) <= 20.0
    assert np.log(latencies).std() == pytest.approx(1.2, rel=0.15)


def test_one_slot_or_one_worker_does_one_thing_at_a_time(folder: Path) -> None:
    one_slot = simulation.engine_rollout(Workload(Law(num_prompts=1, num_slots=1), seed=0, folder=folder))
    one_worker = simulation.engine_rollout(Workload(Law(num_prompts=1, num_workers=1), seed=0, folder=folder))
    assert one_slot["slot_s"] <= one_slot["makespan_s"] < one_slot["slot_s"] + one_slot["worker_s"]
    assert one_worker["worker_s"] <= one_worker["makespan_s"] < one_worker["slot_s"] + one_worker["worker_s"]


# -- the simulation ---------------------------------------------------------------------------------------------------


def test_the_engine_beats_the_barrier_on_work_of_the_same_size(folder: Path) -> None:
    bench = async_bench.simulated(Law(num_prompts=8, num_slots=8, num_workers=8), folder, repetitions=2)
    records = measure(bench, on_progress=lambda line: None)
    figures = bench.figures(records)
    assert figures["speedup_vs_barrier"] > 1.2
    assert figures["speedup_vs_barrier_training"] > 1.2
    assert 0.5 < figures["fraction_of_bound"] <= 1.0
    for ours, theirs in zip(records["engine"], records["barrier"], strict=True):
        assert ours["slot_s"] == pytest.approx(theirs["slot_s"], rel=0.1)
        assert ours["worker_s"] == pytest.approx(theirs["worker_s"], rel=0.1)


def test_a_simulation_is_a_function_of_its_seed(folder: Path) -> None:
    law = Law(num_prompts=4)
    one, again, other = (simulation.engine_rollout(Workload(law, seed=s, folder=folder)) for s in (0, 0, 1))
    assert one == again != other


def test_both_sides_give_the_same_work_to_the_same_paths(folder: Path) -> None:
    """Every path makes one call: 16 paths, of which some began in the middle, behind the calls of others."""
    asked: list[dict[str, float]] = []
    for run in (simulation.engine_rollout, simulation.barrier_rollout):
        workload = Planned(Law(num_prompts=2), folder=folder, num_calls=1)
        run(workload)
        asked.append(workload.asked)
    ours, theirs = asked
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= 2 * simulation.INITIAL
    assert {query: ours[query] for query in shared} == {query: theirs[query] for query in shared}


# -- overlap and prefill ----------------------------------------------------------------------------------------------


def test_wall_time_runs_from_the_first_batch_to_the_last_weights() -> None:
    def report(step: int) -> StepReport:
        zeros = dict.fromkeys(
            ("loss", "grad_norm", "learning_rate", "entropy", "kl_rollout", "ratio_max", "clip_fraction"), 0.0
        )
        return StepReport(step=step, version=step, num_trained_tokens=0, num_computed_tokens=0, duration_s=0.0, **zeros)

    events: list[AnyEvent] = []
    for step, t in ((1, 10.0), (2, 14.0)):
        events.append(BatchTaken(t=t, step=step, prompt_ids=()))
        events.append(StepFinished(t=t + 2.0, report=report(step)))
        events.append(WeightsPublished(t=t + 2.5, version=step, step=step, prompt_ids=()))
    assert timings(events) == {"wall_s": 6.5, "step_s": 4.0, "publish_s": 1.0, "wait_s": 1.5}


def test_the_configuration_of_the_overlap_is_one() -> None:
    config = configuration.load(CONFIG, Config)
    assert len(config.sft) == 1
    assert config.runtime.threads == 1


def test_forks_and_tool_turns_compute_nothing_twice(tmp_path: Path) -> None:
    record = count_prefill(model_path=make_bench_model(tmp_path), seed=0)
    assert record["fork_computed"] == 1
    assert record["excess"] == 0


def test_the_decode_bench_names_its_arms(tmp_path: Path) -> None:
    (bench,) = decode_bench.benches(tmp_path, is_quick=True)
    assert list(bench.arms) == ["embedded", "transformers", "prefill"]


def test_every_bench_that_the_command_line_names_has_a_maker() -> None:
    assert set(NAMES) == set(harness.MAKERS)
