"""Load: many streams at once, each piece timed from the policy's hand to the client's, in another process."""

import asyncio
import re
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import psutil
import pytest

from engine.tokenizer import HfTokenizer
from engine.types import Completion, GenerateRequest
from tests.gateway_world import KEY, world

CLIENTS = Path(__file__).parent / "gateway_clients.py"
NUM_CHUNKS = 20
CHUNK_TOKENS = 8
CHUNK_S = 0.5


class Report(msgspec.Struct):
    arrivals: dict[str, list[float]]
    errors: list[str]


class Load(NamedTuple):
    errors: list[str]
    num_chunks: int
    own_ms: tuple[float, float]
    """Median and 99th percentile, from when a chunk was due to when all of it was with the kernel: what other streams
    make it wait is in there."""
    heard_ms: tuple[float, float]
    """The same to when the client, in another process and beside hundreds of others, had read it."""
    rss_mib: tuple[float, float]
    """A third of the way, and at the end."""


class Timed:
    """A generator that says `NUM_CHUNKS` chunks of text, and remembers when it gave each of them away."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer
        self.given: dict[str, list[float]] = {}
        self.own: list[float] = []

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        text = self._tokenizer.decode(request.token_ids.tolist())
        found = re.search(r"stream-\d+-\d+", text)
        assert found is not None
        given = self.given.setdefault(found[0], [])
        tokens = np.array(self._tokenizer.encode("abcdefgh"[:CHUNK_TOKENS]), np.int32)
        for number in range(NUM_CHUNKS):
            due = time.monotonic() + CHUNK_S
            await asyncio.sleep(CHUNK_S)
            given.append(time.monotonic())
            yield Completion(
                request_id=request.request_id,
                token_ids=tokens,
                logprobs=np.full(tokens.size, -1.0, np.float32),
                entropy_low=np.zeros(tokens.size, np.float32),
                entropy_high=np.zeros(tokens.size, np.float32),
                versions=np.zeros(tokens.size, np.int32),
                finish_reason="stop" if number == NUM_CHUNKS - 1 else "",
            )
            # The gateway asks for more when it has written all that there was.
            self.own.append(time.monotonic() - due)


async def load(folder: Path, *, num_streams: int, seconds: float) -> Load:
    timed = list[Timed]()

    def generator(tokenizer: HfTokenizer) -> Timed:
        timed.append(Timed(tokenizer))
        return timed[0]

    async with world(folder, generator=generator) as here:
        process = await asyncio.create_subprocess_exec(
            sys.executable, CLIENTS, here.url, KEY, str(num_streams), str(seconds), stdout=asyncio.subprocess.PIPE
        )
        own = psutil.Process()
        try:
            reading = asyncio.create_task(process.communicate())
            await asyncio.wait([reading], timeout=seconds / 3)
            early = own.memory_info().rss
            output, _ = await asyncio.wait_for(reading, seconds + 60)
            late = own.memory_info().rss
        finally:
            if process.returncode is None:
                process.kill()
        report = msgspec.json.decode(output, type=Report)
        waits: list[float] = []
        for name, arrivals in report.arrivals.items():
            waits += [b - a for a, b in zip(timed[0].given[name], arrivals, strict=True)]
        return Load(
            report.errors, len(waits), percentiles(timed[0].own), percentiles(waits), (early / 2**20, late / 2**20)
        )


def percentiles(waits: list[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(np.array(waits) * 1e3, [50, 99])
    return float(p50), float(p99)


@pytest.mark.timeout(90)
def test_many_streams_get_every_piece_in_order_and_in_time(tmp_path: Path) -> None:
    found = asyncio.run(load(tmp_path, num_streams=50, seconds=3))
    assert found.errors == []
    assert found.num_chunks >= 50 * NUM_CHUNKS


@pytest.mark.real
@pytest.mark.timeout(150)
def test_500_streams_are_served_whole_and_hold_no_memory(tmp_path: Path) -> None:
    found = asyncio.run(load(tmp_path, num_streams=500, seconds=30))
    assert found.errors == []
    assert found.num_chunks >= 500 * NUM_CHUNKS
    assert found.rss_mib[1] < 1.1 * found.rss_mib[0] + 10
