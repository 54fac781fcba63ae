"""SglangGenerator: one SGLang server as a `Generator`.

Token ids go in and come out; log-probabilities, alternatives and the version of each token are the server's. All
requests of a tree go to one server (`router`), where forks and the turns after tool results read the prefix from the
radix cache. No prefix of old weights is read: an update flushes the cache, or changes the key under which it is read.

An update closes the gate for new requests, and then, by its mode:

    retract    pause (running requests go back to the queue), load, flush the cache, continue: they are prefilled anew
    in_place   pause, load, continue: running requests keep their KV, and their later tokens are marked mixed
    drain      load when the running requests have ended (the server waits for them), flush the cache

With SGLang's overlapped scheduling one token a request may be under way during an `in_place` update: it is stamped with
the new version, and marked mixed. `retract` and `drain` are exact.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Self

from engine.errors import GeneratorError, RequestRefusedError
from engine.inference.requests import check_request
from engine.inference.sglang_chunks import ChunkReader
from engine.inference.sglang_config import SglangConfig
from engine.inference.sglang_http import NEEDED, SglangHttp
from engine.inference.sglang_weights import WeightSender
from engine.inference.shape import read_shape
from engine.reports import GeneratorStatistics
from engine.types import Completion, GenerateRequest, UpdateMode, Version, WeightRef

logger = logging.getLogger(__name__)


QUIET_S = 0.05
"""Silence after which nothing sampled before a pause is taken to be on its way."""
LONGEST_QUIET_S = 2.0
FLUSH_S = 30.0
"""How long a server may take to be idle behind its last request."""


class SglangGenerator:
    """`engine.interfaces.Generator` over HTTP. `async with SglangGenerator(url, ...) as generator`.

    Entering asks the server who it is. Raises `GeneratorLostError` where nobody answers within
    `config.connect_timeout_s`, and `GeneratorError` for a server of another model, vocabulary or dialect.
    """

    def __init__(self, url: str, config: SglangConfig, *, model_path: str, update_timeout_s: float = 600.0) -> None:
        """`model_path` is the folder of the model that the server must have: weights may differ, shapes may not."""
        self.url = url
        self._config = config
        self._shape = read_shape(model_path)
        self._update_timeout_s = update_timeout_s
        self._http = SglangHttp(url, timeout_s=config.connect_timeout_s, api_key=config.api_key)
        self._version: Version = 0
        self._salt: Version = 0
        """In the cache key: the last version that came without a flush. After a flush nothing old is left, and what
        running requests compute anew, under their old key, is what their next turns and forks read."""
        self._clean: deque[Version] = deque(maxlen=64)
        """Versions from which on every running request's KV was computed anew."""
        self._updating = asyncio.Lock()
        self._gate = asyncio.Event()
        self._gate.set()
        self._running: dict[str, str] = {}
        """Our names of requests in flight, and the server's."""
        self._num_requests = 0
        self._num_sampled = 0
        self._num_prefilled = 0
        self._num_cached = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._heard_at = 0.0
        """When a token came last."""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._http)
            await self._meet()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """As `Generator.generate`. Raises `RequestRefusedError` for a request that can never run."""
        check_request(request, vocab_size=self._shape.vocab_size, max_length=self._max_length)
        await self._gate.wait()
        if request.request_id in self._running:
            raise GeneratorError(f"request {request.request_id}: a request of this id is in flight")
        self._num_requests += 1
        # SGLang aborts whatever begins with a name, so no name may begin another one.
        name = f"{self._num_requests};{request.request_id};"
        begun_at = self._version
        reader = ChunkReader(
            request,
            vocab_size=self._shape.vocab_size,
            is_incremental=self._is_incremental,
            is_mixed=lambda version: self._is_mixed(version, begun_at=begun_at),
        )
        self._begin(request.request_id, name)
        try:
            async with contextlib.aclosing(self._http.stream("/generate", self._body(request, name))) as events:
                async for event in events:
                    self._heard_at = asyncio.get_running_loop().time()
                    if (chunk := reader.read(event)) is not None:
                        self._count(chunk)
                        yield chunk
                        if reader.is_ended:
                            return
            raise GeneratorError(f"request {request.request_id}: the stream ended, and nothing said why")
        finally:
            self._end(request.request_id)
            if not reader.is_ended:
                await self._let_go(name)

    async def abort(self, request_id: str) -> None:
        if (name := self._running.get(request_id)) is not None:
            await self._http.tell("/abort_request", {"rid": name})

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        """As `Generator.update_weights`. Raises `GeneratorError` where the server refuses them; it must not be asked
        again before an update has succeeded."""
        flushes = self._config.salt_by_version and mode != "in_place"
        async with self._updating:
            self._gate.clear()
            try:
                if mode == "drain":
                    await self._sender.send(ref, flush=False)
                    if flushes:
                        # Not with the update: the server ends itself where the last batch is not quite over.
                        await self._http.tell(f"/flush_cache?timeout={FLUSH_S:g}", {}, timeout_s=2 * FLUSH_S)
                    self._note(ref, mode=mode)
                else:
                    await self._http.tell("/pause_generation", {"mode": mode})
                    try:
                        await self._until_quiet()
                        await self._sender.send(ref, flush=flushes)
                        self._note(ref, mode=mode)  # before a token of it can come
                    finally:
                        await self._http.tell("/continue_generation", {})
            finally:
                self._gate.set()

    async def statistics(self) -> GeneratorStatistics:
        """What went through this client. `busy_s` counts seconds in which a request was in flight."""
        now = asyncio.get_running_loop().time()
        return GeneratorStatistics(
            version=self._version,
            num_requests=self._num_requests,
            num_running=len(self._running),
            num_sampled_tokens=self._num_sampled,
            num_prefilled_tokens=self._num_prefilled,
            num_cached_tokens=self._num_cached,
            busy_s=self._busy_s + (now - self._busy_since if self._running else 0.0),
        )

    # -- meeting the server -----------------------------------------------------------------------------------

    async def _meet(self) -> None:
        """Learn how the server streams and counts, and make sure that it is the one that was meant."""
        server, model = await self._http.get("/server_info"), await self._http.get("/model_info")
        found = str(server.get("version", "unknown"))
        if _numbers(found) < _numbers(NEEDED):
            raise GeneratorError(f"{self.url}: SGLang {found} answers there, {NEEDED} or newer is needed")
        if (kind := model.get("model_type")) != self._shape.kind:
            raise GeneratorError(f"{self.url}: a {kind} model is served there, not a {self._shape.kind} one")
        await self._check_vocabulary()
        self._is_incremental = bool(server.get("incremental_streaming_output"))
        if not self._is_incremental:
            logger.warning("%s repeats all tokens in every chunk; --incremental-streaming-output avoids that", self.url)
        version = str(model.get("weight_version", ""))
        if not version.isdecimal():
            version = "0"
            await self._http.post("/update_weight_version", {"new_version": version})
        self._version = self._salt = int(version)
        self._max_length = min(int(server["max_total_num_tokens"]), self._shape.max_positions)
        self._sender = WeightSender(
            self._http,
            channel=self._config.weights,
            num_ranks=int(server.get("tp_size", 1)),
            backend="gloo" if server.get("device") == "cpu" else "nccl",
            timeout_s=self._update_timeout_s,
        )

    async def _check_vocabulary(self) -> None:
        """The last token id must exist there, and the next one must not; this costs one token."""
        size = self._shape.vocab_size
        for token, exists in ((size - 1, True), (size, False)):
            body = {
                "input_ids": [0],
                "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
                "return_logprob": True,
                "token_ids_logprob": [token],
            }
            try:
                await self._http.post("/generate", body)
                is_there = True
            except RequestRefusedError:
                is_there = False
            if is_there is not exists:
                raise GeneratorError(f"{self.url}: the model served there has not {size} tokens, as this run's has")

    # -- one request ------------------------------------------------------------------------------------------

    def _body(self, request: GenerateRequest, name: str) -> dict[str, Any]:
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
                # Between the ends of requests the server names one version an event, and an event is of one version
                # only where it is one token. `ChunkReader` makes larger chunks of them.
                "stream_interval": 1,
            },
            "return_logprob": True,
            "top_logprobs_num": min(self._config.top_logprobs, self._shape.vocab_size),
            "stream": True,
            "extra_key": f"v{self._salt}" if self._config.salt_by_version else None,
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

    def _begin(self, request_id: str, name: str) -> None:
        if not self._running:
            self._busy_since = asyncio.get_running_loop().time()
        self._running[request_id] = name

    def _end(self, request_id: str) -> None:
        del self._running[request_id]
        if not self._running:
            self._busy_s += asyncio.get_running_loop().time() - self._busy_since

    async def _until_quiet(self) -> None:
        """Wait for what was sampled before the pause: the server stamps a token with the version it has when it sends
        it, so none may be on its way when the version changes."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_QUIET_S):
                for left in iter(lambda: self._heard_at + QUIET_S - loop.time(), None):
                    if left <= 0 or not self._running:
                        return
                    await asyncio.sleep(left)

    async def _let_go(self, name: str) -> None:
        """Free the server's slot of a request that nobody reads any more, also when its reader is being cancelled."""
        with contextlib.suppress(GeneratorError):
            await asyncio.shield(self._http.tell("/abort_request", {"rid": name}))


async def is_ready(url: str, *, api_key: str | None = None, timeout_s: float = 2.0) -> bool:
    """Whether a server that is starting takes requests yet."""
    async with SglangHttp(url, timeout_s=timeout_s, api_key=api_key) as http:
        return await http.is_up("/ready")


def _numbers(version: str) -> tuple[int, ...]:
    """`0.5.21.post1` is (0, 5, 21)."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)
