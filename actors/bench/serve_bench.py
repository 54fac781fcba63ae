"""`arpo bench serve`: what the gateway itself costs, and whether it stays what it was, under 500 streams at once.

| figure         | what it is                                                                                      |
|----------------|-------------------------------------------------------------------------------------------------|
| `own_p99_ms`   | 99th percentile over chunks, from when the policy had one to when all of it was with the kernel |
| `heard_p99_ms` | the same to when the client, in another process beside all the others, had read it              |
| `chunks_per_s` | that all streams came to                                                                        |
| `growth_mib`   | of the gateway's memory, from a third of the way to the end                                     |

Every stream has to come to its end: one that does not ends the bench.
"""

from collections.abc import Sequence
from pathlib import Path

from actors.bench.bench import Bench, Record, Records
from actors.bench.own_process import in_own_process
from actors.bench.serve_load import load

NUM_STREAMS = 500


def benches(folder: Path, *, is_quick: bool) -> Sequence[Bench]:
    """Two minutes; quick: ten seconds. As many streams in both."""
    seconds = 10.0 if is_quick else 120.0

    def streams(seed: int) -> Record:
        return in_own_process(load, folder=folder / f"load-{seed}", num_streams=NUM_STREAMS, seconds=seconds)

    return (Bench(name="serve", arms={"streams": streams}, repetitions=1, figures=figures),)


def figures(records: Records) -> dict[str, float]:
    """The worst repetition of each."""
    found = records["streams"]
    return {
        "own_p99_ms": max(record["own_p99_ms"] for record in found),
        "heard_p99_ms": max(record["heard_p99_ms"] for record in found),
        "chunks_per_s": min(record["chunks_per_s"] for record in found),
        "growth_mib": max(record["rss_end_mib"] - record["rss_start_mib"] for record in found),
    }
