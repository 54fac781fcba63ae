"""Load: many streams at once come whole and in time, and cost the gateway no memory; `arpo bench serve` measures it."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from actors.bench import serve_bench, serve_load
from engine.errors import ArpoError, RequestRefusedError
from engine.types import Completion, GenerateRequest


@pytest.mark.timeout(90)
def test_many_streams_get_every_piece_in_order_and_in_time(tmp_path: Path) -> None:
    found = serve_load.load(folder=tmp_path, num_streams=50, seconds=3)
    assert found["streams"] == 50


def test_a_stream_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    class Refusing(serve_load.TimedPolicy):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
            raise RequestRefusedError(f"{request.request_id} is refused")
            yield

    with pytest.raises(ArpoError, match=r"streams failed, such as stream-0-0: 400: .* is refused"):
        serve_load.load(folder=tmp_path, num_streams=1, seconds=0.1, make_policy=Refusing)


def test_figures_are_those_of_the_worst_repetition() -> None:
    one = {"own_p99_ms": 3.0, "heard_p99_ms": 9.0, "chunks_per_s": 900.0, "rss_start_mib": 80.0, "rss_end_mib": 81.0}
    other = {"own_p99_ms": 5.0, "heard_p99_ms": 7.0, "chunks_per_s": 950.0, "rss_start_mib": 80.0, "rss_end_mib": 79.0}
    assert serve_bench.figures({"streams": [one, other]}) == {
        "own_p99_ms": 5.0,
        "heard_p99_ms": 9.0,
        "chunks_per_s": 900.0,
        "growth_mib": 1.0,
    }


@pytest.mark.real
@pytest.mark.timeout(150)
def test_500_streams_are_served_whole_and_hold_no_memory(tmp_path: Path) -> None:
    found = serve_load.load(folder=tmp_path, num_streams=500, seconds=30)
    assert found["streams"] >= 500
    assert found["rss_end_mib"] < 1.1 * found["rss_start_mib"] + 10
