"""`arpo bench async`: what it is worth that nobody waits for the slowest.

| figure                          | what it divides                                                              |
|---------------------------------|------------------------------------------------------------------------------|
| `speedup_vs_barrier`            | makespans of one batch of prompts: the released control flow by the engine's |
| `speedup_of_longest_expected`   | the engine's by that under `rollout.order = "longest_expected"`              |
| `fraction_of_bound`             | what no control flow can beat for the engine's work, by its makespan         |
| `fraction_of_blind`             | what no order is expected to beat that knows no lengths, by the makespan     |
| `blind_fraction_of_bound`       | the former by the latter: what there is to reach without foresight           |
| `clairvoyant_fraction_of_bound` | the same for list scheduling that knows all lengths                          |
| `speedup_vs_barrier_training`   | as the first, for four batches with their training steps                     |
| `speedup_vs_barrier_per_step`   | the same, against asynchronous trajectories with a barrier at each step      |
| `speedup_vs_one_step_off`       | the same, against whole batches, each beside the step of the one before      |
| `overlap_ratio`                 | wall times of real training: generation beside the learner by before it      |

All but the last are simulated (see `simulation`, `simulated_training`, and `workload` for the law); that one runs
processes (`overlap`). The report's `timelines` say how busy slots and workers were in each fiftieth of a makespan.

Where the engine loses against the bound: slots or workers are all busy until nearly all work is begun; behind that a
few calls of the heavy tail run alone. Nobody knows beforehand which calls those are, so they too waited for their turn
in the lines, while the bound lets the longest path wait for nothing. `bounds` says how much of it that is: nearly all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from actors.bench import simulated_training, simulation
from actors.bench.bench import Bench, Record, Records, Timeline, median_of, median_ratio
from actors.bench.overlap import Overlap
from actors.bench.workload import Law, Workload


def benches(folder: Path, *, is_quick: bool) -> Sequence[Bench]:
    """The simulation, and the real processes. Quick: fewer repetitions and shorter runs of the same sizes."""
    overlap = Overlap(folder / "overlap", steps=12 if is_quick else 24)
    return (
        simulated(Law(), folder / "workload", repetitions=3 if is_quick else 7),
        Bench(
            name="overlap",
            arms={"overlapped": overlap.overlapped, "serial": overlap.serial},
            repetitions=1 if is_quick else 5,
            figures=lambda records: {"overlap_ratio": median_ratio(records, "overlapped", "serial", of="wall_s")},
        ),
    )


def simulated(law: Law, folder: Path, *, repetitions: int) -> Bench:
    """All control flows under one law, with and without training; seed i draws another workload."""
    training = simulated_training.Training(batch_size=law.num_prompts // 4)
    runs: dict[str, Callable[[Workload], Record]] = {
        "engine": simulation.engine_rollout,
        "engine_longest_expected": partial(simulation.engine_rollout, order="longest_expected"),
        "barrier": simulation.barrier_rollout,
        "engine_training": partial(simulated_training.engine_training, training=training),
        "barrier_per_step": partial(simulated_training.barrier_per_step, training=training),
        "one_step_off": partial(simulated_training.one_step_off, training=training),
        "barrier_training": partial(simulated_training.barrier_training, training=training),
    }
    timelines: dict[str, list[Timeline]] = {name: [] for name in runs}

    def arm(name: str, seed: int) -> Record:
        workload = Workload(law, seed=seed, folder=folder, is_watched=True)
        record = runs[name](workload)
        timelines[name].append(simulation.timeline(workload, makespan_s=record["makespan_s"]))
        return record

    return Bench(
        name="simulation",
        arms={name: partial(arm, name) for name in runs},
        repetitions=repetitions,
        figures=_figures,
        timelines=timelines,
    )


def _figures(records: Records) -> dict[str, float]:
    def speedup(over: str, arm: str = "engine") -> float:
        return median_ratio(records, over, arm, of="makespan_s")

    return {
        "speedup_vs_barrier": speedup("barrier"),
        "speedup_of_longest_expected": speedup("engine", "engine_longest_expected"),
        "fraction_of_bound": median_of(records, "engine", "fraction_of_bound"),
        "fraction_of_blind": median_of(records, "engine", "fraction_of_blind"),
        "blind_fraction_of_bound": median_of(records, "engine", "blind_fraction_of_bound"),
        "clairvoyant_fraction_of_bound": median_of(records, "engine", "clairvoyant_fraction_of_bound"),
        "speedup_vs_barrier_training": speedup("barrier_training", "engine_training"),
        "speedup_vs_barrier_per_step": speedup("barrier_per_step", "engine_training"),
        "speedup_vs_one_step_off": speedup("one_step_off", "engine_training"),
    }
