"""`arpo bench control`: what the control plane costs, and whether it still works when there is much of everything.

| figure           | what it is                                                                                |
|------------------|-------------------------------------------------------------------------------------------|
| `us_per_segment` | CPU of the controller's process for each segment, journal and folds included, in process  |
| `rss_mib`        | its largest memory with 10,000 paths at once                                              |
| `utilisation`    | share of the slots of 1,024 generators that are busy, in the large simulation             |
| `staleness`      | mean over its steps, of the oldest token of each                                          |
| `forks`          | that it granted                                                                           |
| `large_us`       | CPU for each of its segments                                                              |
| `large_wall_s`   | how long it took                                                                          |

See `control` for what is real in them. Quick: a hundredth of the generators and of the paths of the large one.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from actors.bench.bench import Bench, Record, Records, median_of
from actors.bench.control import control
from actors.bench.own_process import in_own_process
from actors.bench.simulation import SIZE
from actors.bench.workload import Law, Workload

CONCURRENT_PATHS = 10_000
NUM_GENERATORS = 1024
ALL_PATHS = 100_000
SLOTS = 32
"""Of each generator, in the large simulation."""


def benches(folder: Path, *, is_quick: bool) -> Sequence[Bench]:
    """One run of usual size, one with many paths at once, and one that is large in every way."""
    law = Law(num_prompts=64 if is_quick else 256)
    shrink = 100 if is_quick else 1
    many = Law(num_prompts=CONCURRENT_PATHS // SIZE, num_slots=CONCURRENT_PATHS, num_workers=CONCURRENT_PATHS)
    workers = ALL_PATHS // shrink
    large = Law(num_prompts=ALL_PATHS // SIZE // shrink, num_slots=SLOTS, num_workers=workers)
    Workload(law, seed=0, folder=folder)  # makes the tokenizer, once

    def usual(seed: int) -> Record:
        return in_own_process(control, law=law, num_generators=1, num_batches=8, folder=folder, seed=seed)

    def concurrent(seed: int) -> Record:
        return in_own_process(
            control, law=many, num_generators=8, num_batches=1, folder=folder, seed=seed, max_staleness=0
        )

    def scale(seed: int) -> Record:
        started_s = time.monotonic()
        record = in_own_process(
            control, law=large, num_generators=NUM_GENERATORS // shrink, num_batches=10, folder=folder, seed=seed
        )
        return record | {"wall_s": time.monotonic() - started_s}

    return (
        Bench(
            name="control",
            arms={"usual": usual, "concurrent": concurrent},
            repetitions=1 if is_quick else 3,
            figures=lambda records: {
                "us_per_segment": median_of(records, "usual", "us_per_segment"),
                "rss_mib": max(record["rss_mib"] for record in records["concurrent"]),
            },
        ),
        Bench(name="large", arms={"large": scale}, repetitions=1, figures=_figures),
    )


def _figures(records: Records) -> dict[str, float]:
    names = {"utilisation": "slots_busy", "staleness": "staleness", "forks": "forks"}
    found = {figure: median_of(records, "large", name) for figure, name in names.items()}
    found["large_us"] = median_of(records, "large", "us_per_segment")
    return found | {"large_wall_s": median_of(records, "large", "wall_s")}
