"""Executor: the one gate between what a policy asks for and what really runs.

    call ──► known? well-formed? ──► semaphore ──► throttle ──► deadline( tool ) ──► cut ──► ToolResult

| stage     | waits for                              | unblocked by                                   |
|-----------|----------------------------------------|------------------------------------------------|
| semaphore | one of the tool's permits              | the deadline of an execution before it          |
| throttle  | its turn in the tool's rate            | the clock                                       |
| tool      | the tool                               | `timeout_s`                                     |
| aexit     | calls that still run                   | their deadlines; those that queue are refused   |

The semaphore is outside because a throttler wakes each of its waiters every 10 ms: behind the permits there are few.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from engine.errors import ConfigError, ToolError, boundary
from engine.types import ToolCall, ToolResult, ToolSpec, ToolStatus
from tools.schema import MalformedCallError, Tool

logger = logging.getLogger(__name__)

DEFAULT_MAX_RESULT_CHARS = 8_000


class ToolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one tool since the start. Produced by the executor, consumed by metrics and reports."""

    num_calls: int = 0
    """Calls that were well-formed enough to reach the tool's queue."""
    num_ok: int = 0
    num_error: int = 0
    num_timeout: int = 0
    num_malformed: int = 0
    num_refused: int = 0
    """Came when the executor was closed, or closing."""
    num_cancelled: int = 0
    num_cut: int = 0
    """Results that were longer than `max_result_chars`."""
    num_waiting: int = 0
    num_running: int = 0
    queued_s: float = 0.0
    """Seconds spent before execution, summed over calls."""
    busy_s: float = 0.0
    """Seconds of execution, summed over calls."""
    slowest_s: float = 0.0


class ExecutorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of an executor."""

    tools: dict[str, ToolStatistics]
    num_unknown: int = 0
    """Calls of tools that do not exist."""
    num_malformed: int = 0
    """Calls the renderer could not read, of any tool."""


class _Lane:
    """One tool, its permits, its rate and its counters."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.semaphore = asyncio.Semaphore(tool.max_concurrency)
        self.throttle: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        if tool.calls_per_s > 0:
            # The throttler reads the wall clock, so it is not even imported unless a rate is asked for.
            from asyncio_throttle import Throttler

            # Windows of about a tenth of a second: over a whole one, a rate of 100 would come in bursts of 100.
            burst = max(1, round(tool.calls_per_s / 10))
            self.throttle = Throttler(rate_limit=burst, period=burst / tool.calls_per_s)
        self.counts = ToolStatistics()

    def count(self, **changes: float) -> None:
        """Add to counters by name."""
        old = self.counts
        self.counts = msgspec.structs.replace(old, **{key: getattr(old, key) + by for key, by in changes.items()})


class Executor:
    """The shipped `engine.interfaces.ToolHost`: runs calls under permits, rates and deadlines; never raises.

    Use it as an async context manager. Leaving it refuses later calls and those that still queue, waits for those
    that run, and closes the tools. A cancelled call gives its permit back, whether it was queueing, throttled or
    running.

    >>> async with Executor([weather]) as executor:                                    # doctest: +SKIP
    ...     await executor.call(ToolCall(name="weather", arguments={"city": "Ulm"}))
    ToolResult(name='weather', text='rain', status='ok', is_cached=False, duration_s=0.21)
    """

    def __init__(self, tools: Iterable[Tool], *, max_result_chars: int = DEFAULT_MAX_RESULT_CHARS) -> None:
        """`max_result_chars` binds visible tools: what a model does not read is never cut.

        Raises `ConfigError` for two tools of one name.
        """
        self._lanes: dict[str, _Lane] = {}
        for tool in tools:
            if tool.name in self._lanes:
                raise ConfigError(f"two tools are called {tool.name!r}")
            self._lanes[tool.name] = _Lane(tool)
        self._max_result_chars = max_result_chars
        self._num_unknown = 0
        self._num_malformed = 0
        self._num_inside = 0
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"Executor({', '.join(self._lanes) or 'no tool'}, inside={self._num_inside}, closed={self._is_closed})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        async with contextlib.AsyncExitStack() as stack:
            for lane in self._lanes.values():
                if lane.tool.aclose is not None:
                    stack.push_async_callback(lane.tool.aclose)
            await self._idle.wait()

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The visible tools, in the order they were given."""
        return tuple(lane.tool.spec for lane in self._lanes.values() if lane.tool.visible)

    def statistics(self) -> ExecutorStatistics:
        return ExecutorStatistics(
            tools={name: lane.counts for name, lane in self._lanes.items()},
            num_unknown=self._num_unknown,
            num_malformed=self._num_malformed,
        )

    async def call(self, call: ToolCall, *, history: Sequence[ToolCall] = ()) -> ToolResult:
        """Run one call; whatever goes wrong is the result's `status` and one line of text.

        `ok`: the tool's text. `malformed`: not executed, since the renderer could not read it, the tool does not
        exist, or the arguments do not fit. `error`: the tool raised. `timeout`: `timeout_s` passed. `refused`: the
        executor is closed. `duration_s` is the execution alone, without queueing. Cancelling the caller cancels the
        tool. `history`, what the path called before, is for tools whose results depend on it; none here does.
        """
        if call.malformed:
            self._num_malformed += 1
            return ToolResult(name=call.name, text=call.malformed, status="malformed")
        lane = self._lanes.get(call.name)
        if lane is None:
            self._num_unknown += 1
            known = ", ".join(spec.name for spec in self.specs) or "none"
            return ToolResult(name=call.name, text=f"No tool {call.name!r}. Tools: {known}.", status="malformed")
        self._num_inside += 1
        self._idle.clear()
        try:
            return await self._queue(lane, call)
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._idle.set()

    async def _queue(self, lane: _Lane, call: ToolCall) -> ToolResult:
        now = asyncio.get_running_loop().time
        asked_at = now()
        lane.count(num_calls=1, num_waiting=1)
        try:
            async with contextlib.AsyncExitStack() as permits:
                try:
                    await permits.enter_async_context(lane.semaphore)
                    if not self._is_closed:
                        await permits.enter_async_context(lane.throttle)
                finally:
                    lane.count(num_waiting=-1, queued_s=now() - asked_at)
                if self._is_closed:
                    lane.count(num_refused=1)
                    return ToolResult(name=call.name, text=f"{call.name}: the tools are closed.", status="refused")
                return await self._run(lane, call)
        except asyncio.CancelledError:
            lane.count(num_cancelled=1)
            raise

    async def _run(self, lane: _Lane, call: ToolCall) -> ToolResult:
        tool, now = lane.tool, asyncio.get_running_loop().time
        status: ToolStatus = "ok"
        began_at = now()
        lane.count(num_running=1)
        try:
            # A TimeoutError of the tool itself becomes a ToolError inside, so the one that gets out is the deadline's.
            async with asyncio.timeout(tool.timeout_s):
                with boundary(ToolError, tool.name):
                    text = await tool.call(call.arguments)
        except TimeoutError:
            status, text = "timeout", f"{tool.name}: no result after {tool.timeout_s:g} s."
        except MalformedCallError as error:
            status, text = "malformed", str(error)
        except ToolError as error:
            status, text = "error", _one_line(str(error))
            logger.debug("tool %s failed", tool.name, exc_info=error)
        finally:
            lane.count(num_running=-1)
        duration_s = now() - began_at
        is_cut = tool.visible and len(text) > self._max_result_chars
        lane.count(busy_s=duration_s, num_cut=is_cut, **{f"num_{status}": 1})
        lane.counts = msgspec.structs.replace(lane.counts, slowest_s=max(lane.counts.slowest_s, duration_s))
        if is_cut:
            text = cut(text, max_chars=self._max_result_chars)
        return ToolResult(name=tool.name, text=text, status=status, duration_s=duration_s)


def cut(text: str, *, max_chars: int) -> str:
    """The first `max_chars` characters, and a note of what was left out; the text itself if it is no longer.

    >>> cut("abcdefgh", max_chars=3)
    'abc\\n[cut: 5 of 8 characters left out]'
    """
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut: {len(text) - max_chars} of {len(text)} characters left out]"


def _one_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "failed without a message")
