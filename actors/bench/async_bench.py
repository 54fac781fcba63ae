"""`arpo bench async`: what it is worth that nobody waits for the slowest.

| figure                        | what it divides                                                              |
|-------------------------------|------------------------------------------------------------------------------|
| `speedup_vs_barrier`          | makespans of one batch of prompts: the released control flow by the engine's |
| `fraction_of_bound`           | what no control flow can beat for the engine's work, by its makespan         |
| `speedup_vs_barrier_training` | as the first, for four batches with their training steps                     |
| `overlap_ratio`               | wall times of real training: generation beside the learner by before it      |

The first three are simulated (see `simulation`, and `workload` for the law), the last one runs processes (`overlap`).

Where the engine loses against the bound: slots or workers are all busy until nearly all work is begun; behind that a
few calls of the heavy tail run alone. Nobody knows beforehand which calls those are, so they too waited for their turn
in the queues, while the bound lets the longest path wait for nothing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from actors.bench import simulation
from actors.bench.bench import Bench, Record, Records, median_of, median_ratio
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
    """Both control flows under one law, with and without training; seed i draws another workload."""
    training = simulation.Training(batch_size=law.num_prompts // 4)

    def arm(run: Callable[[Workload], Record]) -> Callable[[int], Record]:
        return lambda seed: run(Workload(law, seed=seed, folder=folder))

    return Bench(
        name="simulation",
        arms={
            "engine": arm(simulation.engine_rollout),
            "barrier": arm(simulation.barrier_rollout),
            "engine_training": arm(lambda workload: simulation.engine_training(workload, training)),
            "barrier_training": arm(lambda workload: simulation.barrier_training(workload, training)),
        },
        repetitions=repetitions,
        figures=_figures,
    )


def _figures(records: Records) -> dict[str, float]:
    return {
        "speedup_vs_barrier": median_ratio(records, "barrier", "engine", of="makespan_s"),
        "fraction_of_bound": median_of(records, "engine", "fraction_of_bound"),
        "speedup_vs_barrier_training": median_ratio(records, "barrier_training", "engine_training", of="makespan_s"),
    }
