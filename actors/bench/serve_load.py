"""Load on the gateway: many streams at once, each piece timed from the policy's hand to a client's in another process.

The policy is scripted and computes nothing; the rest is what `arpo serve` runs: HTTP, keys, conversations, trees, their
records on disk.
"""

import asyncio
import re
import sys
import time
from array import array
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import psutil

from actors.bench.bench import Record
from actors.bench.serve_clients import Heard
from actors.config import Config, HfModel
from actors.gateway.config import ServeConfig
from actors.gateway.keys import Keys, TenantKeys
from actors.gateway.records import Records
from actors.gateway.server import Gateway
from actors.serve import gateway
from engine.dataset import DataConfig
from engine.errors import ArpoError, DataError
from engine.interfaces import Generator
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import make_bpe_tokenizer
from engine.types import Completion, GenerateRequest

NUM_CHUNKS = 20
"""Of a stream."""
CHUNK_S = 0.5
"""Between two of them."""
CHUNK = "abcdefgh"
WINDOW_S = 5.0
_KEY = "key-of-the-bench"
_GRACE_S = 60.0
"""For the last streams to end, beside their own length."""


class TimedPolicy:
    """A generator that says `NUM_CHUNKS` chunks of text, and remembers when it gave each of them away."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens = np.array(tokenizer.encode(CHUNK), np.int32)
        self.given: dict[str, array[float]] = {}
        """By the name that the client gave its stream."""
        self.due_s = array("d")
        """When each chunk was due."""
        self.own_s = array("d")
        """Seconds from then until the gateway asked for more."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """See `interfaces.Generator.generate`."""
        found = re.search(r"stream-\d+-\d+", self._tokenizer.decode(request.token_ids.tolist()))
        if found is None:
            raise DataError(f"{request.request_id} names no stream")
        given = self.given.setdefault(found[0], array("d"))
        tokens = self._tokens
        for number in range(NUM_CHUNKS):
            due_s = time.monotonic() + CHUNK_S
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
            # It asks for more when it has written all that there was.
            self.due_s.append(due_s)
            self.own_s.append(time.monotonic() - due_s)


def load(
    *,
    folder: Path,
    num_streams: int,
    seconds: float,
    make_policy: Callable[[HfTokenizer], TimedPolicy] = TimedPolicy,
) -> Record:
    """So many streams at once for so long; `folder` is for records.

    `own_...` is from when a chunk was due to when all of it was with the kernel: what other streams make it wait is in
    there. Of `own_p99_ms`, `own_usual_p99_ms` is the median over windows of some seconds, where a moment in which the
    machine had others to serve counts once. `heard_...` is from when the policy gave a chunk away to when the client
    had read it, beside hundreds of others. `rss_start_mib` is a third of the way. Raises `ArpoError` where anything
    went wrong for a client.
    """
    tokenizer = _tokenizer(folder / "model")
    policy = make_policy(tokenizer)
    serving = gateway(
        Config(model=HfModel(path=str(folder)), data=DataConfig(path="none.jsonl"), serve=ServeConfig(port=0)),
        generator=cast("Generator", policy),  # the gateway asks for no more than it has
        tokenizer=tokenizer,
        max_length=4096,
        keys=Keys({"bench": TenantKeys(key=_KEY)}),
        records=Records(folder / "traffic"),
    )
    return asyncio.run(_load(serving, policy, num_streams=num_streams, seconds=seconds))


async def _load(serving: Gateway, policy: TimedPolicy, *, num_streams: int, seconds: float) -> Record:
    own = psutil.Process()
    async with serving.listening() as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "actors.bench.serve_clients", url, _KEY, str(num_streams), str(seconds)),
            stdout=asyncio.subprocess.PIPE,
        )
        started_s, cpu_s = time.monotonic(), time.process_time()
        try:
            reading = asyncio.create_task(process.communicate(), name="clients")
            await asyncio.wait([reading], timeout=seconds / 3)
            early = own.memory_info().rss
            output, _ = await asyncio.wait_for(reading, seconds + NUM_CHUNKS * CHUNK_S + _GRACE_S)
            late = own.memory_info().rss
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        took_s, cpu_s = time.monotonic() - started_s, time.process_time() - cpu_s
    heard = msgspec.json.decode(output, type=Heard)
    if heard.errors:
        raise ArpoError(f"{len(heard.errors)} streams failed, such as {heard.errors[0]}")
    waits = [
        there - here
        for name, arrivals in heard.arrivals.items()
        for here, there in zip(policy.given[name], arrivals, strict=True)
    ]
    return {
        "streams": float(len(heard.arrivals)),
        "chunks_per_s": len(waits) / took_s,
        **_quantiles("own", policy.own_s),
        "own_usual_p99_ms": _usual_p99_ms(policy.due_s, policy.own_s),
        **_quantiles("heard", waits),
        "cpu_us_per_chunk": cpu_s / len(waits) * 1e6,
        "rss_start_mib": early / 2**20,
        "rss_end_mib": late / 2**20,
    }


def _tokenizer(folder: Path) -> HfTokenizer:
    make_bpe_tokenizer(folder, texts=[CHUNK], vocab_size=300)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return load_tokenizer(folder)


def _quantiles(name: str, seconds: "array[float] | list[float]") -> Record:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}


def _usual_p99_ms(due_s: "array[float]", own_s: "array[float]") -> float:
    due = np.array(due_s)
    window = ((due - due.min()) // WINDOW_S).astype(int)
    own_ms = np.array(own_s) * 1e3
    return float(np.median([np.percentile(own_ms[window == number], 99) for number in np.unique(window)]))
