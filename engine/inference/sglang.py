"""SglangGenerator: one SGLang server as a `Generator`.

Token ids go in and come out; log-probabilities, alternatives and the version of each token are the server's. All
requests of a tree go to one server (`router`), where forks and the turns after tool results read the prefix from the
radix cache. No prefix of old weights is read: an update flushes the cache, or changes the key under which it is read.

What a request samples can be read by others when it ends, and not before. One that names a place where forks may begin
(`GenerateRequest.fork_after`) is therefore sent in two parts: the first ends there, and the second goes on from its
cache. They have one seed, which SGLang applies to positions, one key, and one stream. A request under which the version
changes is divided in the same way: the server says at the end of a request, and not before, which token is of which
version, so it is ended at the first event of another version, and goes on. Events may so hold many tokens, which spares
the server and this client most of what streaming costs them.

An update closes the gate for new requests, and then, by its mode:

    retract    pause (running requests go back to the queue), load, flush the cache, continue: they are prefilled anew
    in_place   pause, load, continue: running requests keep their KV, and their later tokens are marked mixed
    drain      load when the running requests have ended (the server waits for them), flush the cache

With SGLang's overlapped scheduling one token a request may be under way during an `in_place` update: it is stamped with
the new version, and marked mixed. `retract` and `drain` are exact.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Self

import msgspec
import numpy as np

from engine.errors import GeneratorError, GeneratorLostError
from engine.inference.requests import check_request
from engine.inference.sglang_chunks import ChunkReader, aborted
from engine.inference.sglang_config import SglangConfig
from engine.inference.sglang_flights import Flight, Flights
from engine.inference.sglang_http import SglangHttp
from engine.inference.sglang_meeting import meet
from engine.inference.sglang_parts import continued, next_part, rest
from engine.inference.sglang_weights import WeightSender
from engine.inference.shape import read_shape
from engine.reports import GeneratorStatistics
from engine.types import Completion, GenerateRequest, Int32, UpdateMode, Version, WeightRef

FLUSH_S = 30.0
"""How long a server may take to be idle behind its last request."""
END_S = 1.0
"""How long a stream may take to close behind its last event; one that does costs its connection."""


class SglangGenerator:
    """`engine.interfaces.Generator` over HTTP. `async with SglangGenerator(url, ...) as generator`.

    Entering asks the server who it is. Raises `GeneratorLostError` where nobody answers within
    `config.connect_timeout_s`, and `GeneratorError` for a server of another model, vocabulary or dialect.
    """

    def __init__(
        self,
        url: str,
        config: SglangConfig,
        *,
        model_path: str,
        update_timeout_s: float = 600.0,
        answer_timeout_s: float = 120.0,
    ) -> None:
        """`model_path` is the folder of the model that the server must have: weights may differ, shapes may not.

        `answer_timeout_s` is for the first token, which a server that is busy with others does not give at once.
        """
        self.url = url
        self._config = config
        self._shape = read_shape(model_path)
        self._update_timeout_s = update_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._http = SglangHttp(url, timeout_s=config.connect_timeout_s, api_key=config.api_key)
        self._version: Version = 0
        self._salt: Version = 0
        """In the cache key: the last version that came without a flush. After a flush nothing old is left, and what
        running requests compute anew, under their old key, is what their next turns and forks read."""
        self._clean: deque[Version] = deque(maxlen=64)
        """Versions from which on every running request's KV was computed anew."""
        self._updating = asyncio.Lock()
        self._flights = Flights()
        self._num_requests = 0
        self._num_sampled = 0
        self._num_prefilled = 0
        self._num_cached = 0

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._http)
            self._server = await meet(self._http, self._shape, answer_timeout_s=self._answer_timeout_s)
            self._version = self._salt = self._server.version
            self._sender = WeightSender(
                self._http,
                channel=self._config.weights,
                num_ranks=self._server.num_ranks,
                backend=self._server.backend,
                timeout_s=self._update_timeout_s,
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """As `Generator.generate`. Raises `RequestRefusedError` for a request that can never run."""
        check_request(request, vocab_size=self._shape.vocab_size, max_length=self._server.max_length)
        flight = self._flights.begin(request.request_id)
        try:
            await self._flights.enter(flight)
            self._num_requests += flight.is_running
            async with contextlib.aclosing(self._in_parts(request, flight)) as chunks:
                async for chunk in chunks:
                    self._count(chunk)
                    yield chunk
        finally:
            self._flights.end(flight)

    async def abort(self, request_id: str) -> None:
        if name := self._flights.abort(request_id):
            await self._http.tell("/abort_request", {"rid": name})

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        """As `Generator.update_weights`. Raises `GeneratorError` where the server refuses them; it must not be asked
        again before an update has succeeded."""
        flushes = self._config.salt_by_version and mode != "in_place"
        async with self._updating:
            try:
                if mode == "drain":
                    self._flights.turn("draining")
                    await self._until_whole()
                    await self._sender.send(ref, flush=False)
                    if flushes:
                        # Not with the update: the server ends itself where the last batch is not quite over.
                        await self._http.tell(f"/flush_cache?timeout={FLUSH_S:g}", {}, timeout_s=2 * FLUSH_S)
                    self._note(ref, mode=mode)
                else:
                    self._flights.turn("shut")
                    try:
                        # Inside: nobody knows whether a pause without an answer has come to be.
                        await self._http.tell("/pause_generation", {"mode": mode})
                        await self._sender.send(ref, flush=flushes)
                        self._note(ref, mode=mode)  # before a token of it can come
                    finally:
                        await self._http.tell("/continue_generation", {})
            finally:
                self._flights.turn("open")

    async def statistics(self) -> GeneratorStatistics:
        """What went through this client. `busy_s` counts seconds in which a request was in flight.

        The server is asked whether it is there: its supervisor may be the only one who asks.
        """
        await self._http.ping("/model_info", timeout_s=self._answer_timeout_s)
        return GeneratorStatistics(
            version=self._version,
            num_requests=self._num_requests,
            num_running=self._flights.num_running,
            num_waiting=self._flights.num_waiting,
            num_sampled_tokens=self._num_sampled,
            num_prefilled_tokens=self._num_prefilled,
            num_cached_tokens=self._num_cached,
            busy_s=self._flights.busy_s,
        )

    # -- one request ------------------------------------------------------------------------------------------------

    async def _in_parts(self, request: GenerateRequest, flight: Flight) -> AsyncGenerator[Completion, None]:
        """One stream, over as many requests to the server as forks and updates make of it."""
        begun_at, salt, left = self._version, self._salt, request
        while True:
            await self._flights.go_on(flight)
            if flight.is_aborted:
                yield aborted(request)
                return
            sampled: list[Int32] = []
            async with contextlib.aclosing(self._part(left, flight, begun_at, salt)) as chunks:
                async for chunk in chunks:
                    yield chunk if left is request or sampled else continued(chunk)
                    if chunk.finish_reason:
                        return
                    sampled.append(chunk.token_ids)
            left = rest(left, np.concatenate(sampled))

    async def _part(
        self, left: GenerateRequest, flight: Flight, begun_at: Version, salt: Version
    ) -> AsyncGenerator[Completion, None]:
        """One request to the server for what is `left`; it ends without a finish reason where more is left then."""
        request = next_part(left)
        has_more = request is not left
        reader = ChunkReader(
            request,
            version=max(self._version, flight.version),  # another client may have updated it, or this one's call failed
            vocab_size=self._shape.vocab_size,
            is_incremental=self._server.is_incremental,
            is_mixed=lambda version: self._is_mixed(version, begun_at=begun_at),
        )
        self._flights.send(flight, has_more=has_more)
        name = flight.name
        try:
            body = self._body(request, name, salt)
            async with contextlib.aclosing(self._http.stream("/generate", body)) as events:
                async for event in events:
                    if self._flights.hear(flight, has_more=has_more):
                        await self._let_go(name)
                    chunk = reader.read(event)
                    flight.version = reader.version
                    if reader.is_ended:
                        await _read_on(events)
                    elif reader.is_in_doubt and not flight.is_cut:
                        self._flights.cut(flight)
                        await self._let_go(name)
                    if chunk is not None:
                        if (chunk.finish_reason == "length" and has_more) or (
                            chunk.finish_reason == "aborted" and flight.is_cut and not flight.is_aborted
                        ):
                            chunk = msgspec.structs.replace(chunk, finish_reason="")
                        yield chunk
                    if reader.is_ended:
                        return
            raise GeneratorError(f"request {request.request_id}: the stream ended, and nothing said why")
        finally:
            if not reader.is_ended:
                await self._let_go(name)

    def _body(self, request: GenerateRequest, name: str, salt: Version) -> dict[str, Any]:
        sampling = request.sampling
        return {
            "rid": name,
            "input_ids": request.token_ids.tolist(),
            "sampling_params": {
                "max_new_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "stop": list(sampling.stop),
                "stop_token_ids": list(sampling.stop_token_ids),
                "no_stop_trim": True,
                "skip_special_tokens": False,
                "sampling_seed": sampling.seed % 2**31,
                "stream_interval": request.stream_interval,
            },
            "return_logprob": True,
            "top_logprobs_num": min(self._config.top_logprobs, self._shape.vocab_size),
            "stream": True,
            "extra_key": cache_key(f"v{salt}" if self._config.salt_by_version else "", request.cache_scope),
        }

    def _note(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        self._version = ref.version
        if mode == "in_place":
            self._salt = ref.version
        else:
            self._clean.append(ref.version)

    def _is_mixed(self, version: Version, *, begun_at: Version) -> bool:
        """A token of `version` in a request that began at another one: is there older KV below it?"""
        return version > max([begun_at, *(clean for clean in self._clean if clean <= version)])

    def _count(self, chunk: Completion) -> None:
        self._num_sampled += chunk.token_ids.size
        self._num_prefilled += chunk.num_prefilled_tokens
        self._num_cached += chunk.num_cached_tokens

    async def _until_whole(self) -> None:
        """The server lets nothing in behind an update that waits, so it must have all parts of what is drained."""
        try:
            async with asyncio.timeout(self._update_timeout_s):
                await self._flights.until_whole()
        except TimeoutError:
            what = f"a request that is drained has not gone on within {self._update_timeout_s:g} s"
            raise GeneratorLostError(f"{self.url}: {what}") from None

    async def _let_go(self, name: str) -> None:
        """Free the server's slot of a request that nobody reads any more, also when its reader is being cancelled."""
        with contextlib.suppress(GeneratorError):
            await asyncio.shield(self._http.tell("/abort_request", {"rid": name}))


def cache_key(version: str, scope: str) -> str | None:
    """What names the part of the radix cache that a request may read; None for the part without a name."""
    return "/".join(part for part in (version, scope) if part) or None


async def is_ready(url: str, *, api_key: str | None = None, timeout_s: float = 2.0) -> bool:
    """Whether a server that is starting takes requests yet."""
    async with SglangHttp(url, timeout_s=timeout_s, api_key=api_key) as http:
        return await http.is_up("/ready")


async def _read_on(events: AsyncGenerator[bytes, None]) -> None:
    """Hear a stream out whose finish is known: a connection that was read to its end is used again."""
    with contextlib.suppress(GeneratorError, TimeoutError):
        async with asyncio.timeout(END_S):
            async for _ in events:
                pass
