"""`arpo bench control`: what the control plane costs, and whether it still works when there is much of everything.

| figure                | what it is                                                                                |
|-----------------------|-------------------------------------------------------------------------------------------|
| `us_per_segment`      | CPU of the controller's process for each segment, journal and folds included, in process  |
| `us_per_segment_http` | the same with an SGLang server's interface between, and its log-probabilities to read     |
| `rss_mib`             | its largest memory with 10,000 paths at once                                              |
| `utilisation`         | share of the slots of 1,024 generators that are busy, in the large simulation             |
| `staleness`           | mean over its steps, of the oldest token of each                                          |
| `forks`               | that it granted                                                                           |
| `large_us`            | CPU for each of its segments                                                              |
| `large_wall_s`        | how long it took                                                                          |

See `control` for what is real in them, and `control_config` for sizes and distributions, which `law.latency_median_s=2`
or a TOML file behind the name change. Quick: a hundredth of the generators and of the paths of the large one.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from actors.bench.bench import Bench, Record, Records, median_of
from actors.bench.control import control
from actors.bench.control_config import NUM_BATCHES, load_control
from actors.bench.control_http import over_http
from actors.bench.own_process import in_own_process
from actors.bench.simulation import SIZE
from actors.bench.workload import Workload


def benches(folder: Path, *, is_quick: bool, overrides: Sequence[str] = ()) -> Sequence[Bench]:
    """One run of usual size, in process and over HTTP; one with many paths at once; and one that is large."""
    config = load_control(overrides, is_quick=is_quick)
    law, large, at_once = config.law, config.large, config.concurrent_paths
    many = msgspec.structs.replace(law, num_prompts=at_once // SIZE, num_slots=at_once, num_workers=at_once)
    scaled = msgspec.structs.replace(
        law, num_prompts=large.num_paths // SIZE, num_slots=large.slots, num_workers=large.num_paths
    )
    Workload(law, seed=0, folder=folder)  # makes the tokenizer, once

    def usual(seed: int) -> Record:
        return in_own_process(control, law=law, num_generators=1, num_batches=NUM_BATCHES, folder=folder, seed=seed)

    def http(seed: int) -> Record:
        return in_own_process(
            over_http,
            law=msgspec.structs.replace(law, num_prompts=config.http_prompts),
            num_batches=2,
            folder=folder,
            seed=seed,
        )

    def concurrent(seed: int) -> Record:
        return in_own_process(
            control, law=many, num_generators=8, num_batches=1, folder=folder, seed=seed, max_staleness=0
        )

    def scale(seed: int) -> Record:
        started_s = time.monotonic()
        record = in_own_process(
            control,
            law=scaled,
            num_generators=large.num_generators,
            num_batches=large.num_batches,
            folder=folder,
            seed=seed,
            max_staleness=large.max_staleness,
            step_s=large.step_s,
            publish_s=large.publish_s,
            told_as="large",
        )
        return record | {"wall_s": time.monotonic() - started_s}

    return (
        Bench(
            name="control",
            arms={"usual": usual, "http": http, "concurrent": concurrent},
            repetitions=1 if is_quick else 3,
            figures=lambda records: {
                "us_per_segment": median_of(records, "usual", "us_per_segment"),
                "us_per_segment_http": median_of(records, "http", "us_per_segment"),
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
