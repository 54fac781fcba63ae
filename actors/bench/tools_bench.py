"""`arpo bench tools`: does the gate in front of tools hold a rate, and does the loop stay free, under many calls.

| figure                | what it is                                                                           |
|-----------------------|--------------------------------------------------------------------------------------|
| `rate_error`          | relative distance of executions a second from the rate, once all calls are under way |
| `loop_lag_p99_ms`     | by how much timers of the calling loop are late, while all calls wait or run         |
| `calls_per_s_reused`  | calls a second that a cache answers                                                  |
| `calls_per_execution` | calls by executions, where equal ones overlap                                        |
"""

from collections.abc import Sequence
from pathlib import Path

from actors.bench.bench import Bench, Records, median_of
from actors.bench.tools_load import RATE, limited, reused, shared


def benches(folder: Path, *, is_quick: bool) -> Sequence[Bench]:
    """Quick: fewer calls at the same rate."""
    num_calls = 2_500 if is_quick else 10_000
    return (
        Bench(
            name="tools",
            arms={
                "http": lambda seed: limited(num_calls),
                "shared": lambda seed: shared(num_calls, num_distinct=100),
                "reused": lambda seed: reused(num_calls, file=folder / f"calls-{seed}.db"),
            },
            repetitions=1 if is_quick else 3,
            figures=_figures,
        ),
    )


def _figures(records: Records) -> dict[str, float]:
    return {
        "rate_error": max(abs(record["calls_per_s"] / RATE - 1) for record in records["http"]),
        "loop_lag_p99_ms": max(record["lag_p99_ms"] for record in records["http"]),
        "calls_per_s_reused": median_of(records, "reused", "calls_per_s"),
        "calls_per_execution": median_of(records, "shared", "calls_per_execution"),
    }
