"""ScriptedGenerator: the shipped fake of the `Generator` seam; says what a function tells it, on the loop's clock."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec
import numpy as np

from engine.coins import coin, seed_of
from engine.errors import GeneratorError
from engine.reports import GeneratorStatistics
from engine.turnstile import Turnstile
from engine.types import Completion, FinishReason, GenerateRequest, Int32, UpdateMode, Version, WeightRef


class Script(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the scripted policy samples for one request."""

    token_ids: Sequence[int]
    entropies: Sequence[float] = ()
    """Nats, one a token; missing ones are 0."""
    token_s: float = 0.0
    """Seconds a token takes."""
    finish_reason: FinishReason = "stop"
    fails_after: int | None = None
    """Raise `GeneratorError` once this many tokens were streamed."""


class ScriptedGenerator:
    """Streams scripts in chunks, stamps versions, honours abort and the three update modes.

    A sampled token's log-probability is -1 for every token unless the script's author needs otherwise: the fake has no
    distribution of its own.
    """

    def __init__(
        self, script: Callable[[GenerateRequest], Script], *, version: Version = 0, num_slots: int | None = None
    ) -> None:
        """`num_slots` requests run at once, others wait by their precedence; None runs all."""
        self._script = script
        self._slots = None if num_slots is None else Turnstile(num_slots)
        self._version = version
        self._aborted: set[str] = set()
        self._running: dict[str, Version] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()
        self._num_sampled = 0
        self.requests: list[GenerateRequest] = []
        """Every request that came, in order."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """See `interfaces.Generator.generate`."""
        self.requests.append(request)
        place = self._slots.place(request.precedence) if self._slots else contextlib.nullcontext()
        async with place, contextlib.aclosing(self._stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _stream(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        await self._open.wait()
        self._running[request.request_id] = self._version
        self._idle.clear()
        try:
            script = self._script(request)
            tokens = list(script.token_ids)[: request.sampling.max_new_tokens]
            reason = script.finish_reason if len(tokens) == len(script.token_ids) else "length"
            entropies = [*script.entropies, *[0.0] * len(tokens)]
            for start in range(0, max(len(tokens), 1), request.stream_interval):
                end = min(start + request.stream_interval, len(tokens))
                if script.fails_after is not None and end > script.fails_after:
                    raise GeneratorError(f"scripted failure of {request.request_id}")
                await asyncio.sleep(script.token_s * (end - start))
                if request.request_id in self._aborted:
                    yield self._chunk(request, [], [], "aborted", start=start)
                    return
                is_last = end == len(tokens)
                self._num_sampled += end - start
                chunk, levels = tokens[start:end], entropies[start:end]
                yield self._chunk(request, chunk, levels, reason if is_last else "", start=start)
        finally:
            self._aborted.discard(request.request_id)
            self._running.pop(request.request_id, None)
            if not self._running:
                self._idle.set()

    async def abort(self, request_id: str) -> None:
        if request_id in self._running:
            self._aborted.add(request_id)

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        try:
            if mode == "drain":
                self._open.clear()
                await self._idle.wait()
            self._version = ref.version
            if mode == "retract":
                self._running = dict.fromkeys(self._running, ref.version)
        finally:
            self._open.set()

    async def statistics(self) -> GeneratorStatistics:
        return GeneratorStatistics(
            version=self._version,
            num_requests=len(self.requests),
            num_running=len(self._running),
            num_sampled_tokens=self._num_sampled,
        )

    def _chunk(
        self, request: GenerateRequest, tokens: list[int], levels: list[float], reason: FinishReason, *, start: int
    ) -> Completion:
        entropy = np.array(levels, np.float32)
        return Completion(
            request_id=request.request_id,
            token_ids=np.array(tokens, np.int32),
            logprobs=np.full(len(tokens), -1.0, np.float32),
            entropy_low=entropy,
            entropy_high=entropy,
            versions=np.full(len(tokens), self._version, np.int32),
            finish_reason=reason,
            is_mixed=self._running[request.request_id] != self._version,
            # As a backend that shares only what has ended, and so divides a request where forks may begin.
            begins_anew=0 < start == request.fork_after,
            num_prefilled_tokens=0 if start else request.token_ids.size,
        )


def random_script(
    *, calls: Sequence[Sequence[int]], answer: Sequence[int], words: Int32, num_words: int, token_s: float = 0.0
) -> Callable[[GenerateRequest], Script]:
    """A policy without weights: some random words, then a random one of `calls`, or (one time in three) `answer`.

    What it says for a request is a function of the sampling seed and the length of the prompt alone, so it is the same
    for any number of workers; entropies are uniform in [0, 2) nats.
    """

    def script(request: GenerateRequest) -> Script:
        where = (request.sampling.seed, request.token_ids.size)
        count = 1 + seed_of(*where, "count") % num_words
        body = [int(words[seed_of(*where, "word", i) % words.size]) for i in range(count)]
        ends = list(calls[seed_of(*where, "call") % len(calls)]) if coin(*where, "end") > 1 / 3 else list(answer)
        entropies = [2.0 * coin(*where, "entropy", i) for i in range(len(body) + len(ends))]
        return Script(token_ids=body + ends, entropies=entropies, token_s=token_s)

    return script
