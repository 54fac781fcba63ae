"""EmbeddedGenerator: the embedded engine as a `Generator`, stepping in a thread beside the event loop.

| loop | consumes          | waits for             | produces                | unblocked by                            |
|------|-------------------|-----------------------|-------------------------|-----------------------------------------|
| run  | commands, updates | work, then one burst  | chunks into the streams | generate, abort, update, close; a step  |
| user | its stream        | the next chunk        | -                       | run: a chunk, the last one, or an error |

A *burst* is as many steps as it takes until something is there to deliver or a command waits, so the threads do not
change places for every token. A stream's queue is unbounded, and holds at most max_new_tokens chunks.

Importing this module loads no torch; entering the generator does.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import msgspec

from engine.config import Positive, Section
from engine.errors import GeneratorError, GeneratorLostError, boundary
from engine.interfaces import Tokenizer
from engine.reports import GeneratorStatistics
from engine.types import Completion, GenerateRequest, UpdateMode, WeightRef

if TYPE_CHECKING:
    from engine.inference.embedded_engine import EmbeddedEngine

logger = logging.getLogger(__name__)

_BURST_STEPS = 64
"""Steps after which statistics are refreshed, whatever else happens."""


class EmbeddedConfig(Section, frozen=True, tag="embedded", tag_field="kind"):
    """How the embedded engine uses its machine."""

    max_kv_tokens: Positive = 65_536
    """Tokens whose keys and values are kept, of running requests and cached prefixes together; also bounds the length
    of one request. A token takes 2 * layers * kv heads * head_dim numbers: 2 KiB for 4 layers of 2 heads of 32."""
    max_running: Positive = 64
    """Requests in one batch; others wait."""
    prefill_chunk: Positive = 512
    """Prompt tokens computed in one step beside the decodes; a smaller one makes decodes wait less."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is float32 on a CPU and bfloat16 on a GPU. Log-probabilities are computed in float32 either way."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """Attention and small operations: `native` is C, for float32 on a CPU; `auto` takes it where it can be built, and
    says so where it cannot."""
    deterministic: bool = False
    """Fix the shape of every matrix product, so that no token depends on what else is in the batch or the cache, bit by
    bit (tested on one machine; needs the native kernels). A step then costs as much as one of 32 rows, at least."""
    salt_by_version: bool = True
    """Never read a prefix that older weights computed. False exists to show what goes wrong then, and for nothing
    else."""


class _Update(NamedTuple):
    """An update that somebody waits for."""

    ref: WeightRef
    mode: UpdateMode
    done: asyncio.Future[None]


class _Burst:
    """What a burst came to."""

    def __init__(self) -> None:
        self.chunks: list[Completion] = []
        self.updates: list[tuple[_Update, GeneratorError | None]] = []
        self.statistics = GeneratorStatistics(version=0)


class EmbeddedGenerator:
    """`engine.interfaces.Generator` in this process.

    Use as `async with EmbeddedGenerator(config, model_path=...) as generator`; leaving ends open streams with
    `GeneratorError`. An exception in a step does the same, and every later call raises it: a `GeneratorLostError`
    where a new start may help.
    """

    def __init__(self, config: EmbeddedConfig, *, model_path: str, tokenizer: Tokenizer | None = None) -> None:
        self._config = config
        self._model_path = model_path
        self._tokenizer = tokenizer
        self._engine: EmbeddedEngine | None = None
        self._names: dict[str, str] = {}
        self._streams: dict[str, asyncio.Queue[Completion | GeneratorError]] = {}
        self._num_streams = 0
        self._commands: deque[Callable[[EmbeddedEngine], None]] = deque()
        self._updates: deque[_Update] = deque()
        self._wake = asyncio.Event()
        self._is_closed = False
        self._failure: GeneratorError | None = None

    async def __aenter__(self) -> Self:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-engine")
        engine = await asyncio.get_running_loop().run_in_executor(self._executor, self._start)
        self._engine = engine
        self._statistics = engine.statistics()
        self._task = asyncio.create_task(self._run(engine), name="embedded-generator")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._wake.set()
        await self._task
        self._executor.shutdown()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Completion]:
        """As `Generator.generate`. Raises `RequestRefusedError` at once for a request that can never run."""
        self._open_engine().check(request)
        name = request.request_id
        if name in self._names:
            raise GeneratorError(f"request {name}: a request of this id is in flight")
        # The engine knows each stream by a name of its own, so that a late chunk of an aborted request cannot reach
        # a new one of the same id.
        self._num_streams += 1
        inner = f"{name}#{self._num_streams}"
        stream: asyncio.Queue[Completion | GeneratorError] = asyncio.Queue()
        self._names[name], self._streams[inner] = inner, stream
        self._command(lambda engine: engine.submit(msgspec.structs.replace(request, request_id=inner)))
        is_ended = False
        try:
            while not is_ended:
                chunk = await stream.get()
                is_ended = isinstance(chunk, GeneratorError) or chunk.finish_reason != ""
                if isinstance(chunk, GeneratorError):
                    raise type(chunk)(f"request {name}: {chunk}") from chunk
                yield msgspec.structs.replace(chunk, request_id=name)
        finally:
            del self._names[name], self._streams[inner]
            if not is_ended:
                self._command(lambda engine: engine.abort(inner))

    async def abort(self, request_id: str) -> None:
        inner = self._names.get(request_id)
        if inner is not None:
            self._command(lambda engine: engine.abort(inner))

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        """As `Generator.update_weights`. Raises `GeneratorError`, with the old weights still there, where the new ones
        cannot be read or do not fit. Updates are applied in the order of the calls."""
        self._open_engine()
        update = _Update(ref, mode, asyncio.get_running_loop().create_future())
        self._updates.append(update)
        self._wake.set()
        await update.done

    async def statistics(self) -> GeneratorStatistics:
        """As of the last burst of steps."""
        self._open_engine()
        return self._statistics

    def _start(self) -> "EmbeddedEngine":
        from engine.inference.embedded_engine import EmbeddedEngine

        return EmbeddedEngine(self._config, model_path=self._model_path, tokenizer=self._tokenizer)

    def _open_engine(self) -> "EmbeddedEngine":
        if self._failure is not None:
            raise self._failure
        if self._engine is None or self._is_closed:
            raise GeneratorError("the embedded generator is not open; use it as an async context manager")
        return self._engine

    def _command(self, command: "Callable[[EmbeddedEngine], None]") -> None:
        self._commands.append(command)
        self._wake.set()

    async def _run(self, engine: "EmbeddedEngine") -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self._is_closed:
                if not (self._commands or self._updates or engine.has_work):
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                with boundary(GeneratorLostError, "the embedded engine failed"):
                    burst = await loop.run_in_executor(self._executor, self._burst, engine)
                self._deliver(burst)
        except GeneratorError as error:
            logger.error("%s", error)
            self._failure = error
        finally:
            self._end_all(self._failure or GeneratorLostError("the embedded generator was closed"))

    def _burst(self, engine: "EmbeddedEngine") -> _Burst:
        """Runs in the thread; the event loop meanwhile only appends to the two queues that this takes from."""
        burst = _Burst()
        while self._commands:
            self._commands.popleft()(engine)
        while self._updates:
            update, error = self._updates[0], None
            try:
                if not engine.update_weights(update.ref, mode=update.mode):
                    break
            except GeneratorError as refusal:
                error = refusal
            burst.updates.append((self._updates.popleft(), error))
        # Nothing that somebody waits for is carried over a step, which may raise.
        for _ in range(0 if burst.updates else _BURST_STEPS):
            burst.chunks += engine.step()
            is_wanted = burst.chunks or self._commands or self._updates or self._is_closed
            if is_wanted or not engine.has_work:
                break
        burst.statistics = engine.statistics()
        return burst

    def _deliver(self, burst: _Burst) -> None:
        self._statistics = burst.statistics
        for chunk in burst.chunks:
            if chunk.request_id in self._streams:
                self._streams[chunk.request_id].put_nowait(chunk)
        for update, error in burst.updates:
            _settle(update, error)

    def _end_all(self, error: GeneratorError) -> None:
        for stream in self._streams.values():
            stream.put_nowait(error)
        while self._updates:
            _settle(self._updates.popleft(), error)


def _settle(update: _Update, error: GeneratorError | None) -> None:
    if update.done.done():
        return  # its caller was cancelled
    if error is None:
        update.done.set_result(None)
    else:
        update.done.set_exception(error)
