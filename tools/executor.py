"""Executor: the one gate between what a policy asks for and what really runs.

    call ──► known? well-formed? ──► under way already? ──► cached? ──► lane (permit, rate, deadline) ──► cut ──► result

| stage     | waits for                              | unblocked by                                   |
|-----------|----------------------------------------|------------------------------------------------|
| flight    | an equal call that is under way        | its end, whatever that is                       |
| cache     | a lookup                               | the cache's own bound on waiting                |
| lane      | a permit, the rate, the tool           | see `lane`                                      |
| aexit     | calls that still run                   | their deadlines; those that queue are refused   |
"""

import asyncio
import contextlib
import random
from collections.abc import Generator, Iterable, Sequence
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import msgspec

from engine.errors import ConfigError
from engine.turnstile import FIRST_COME, Precedence
from engine.types import ToolCall, ToolResult, ToolSpec
from tools.breaker import DEFAULT_PAUSE_S, DEFAULT_THRESHOLD, Breaker
from tools.call_cache import CallCache, call_key
from tools.flights import Flights
from tools.hosts import Host
from tools.lane import Lane
from tools.schema import MalformedCallError, Tool
from tools.tool_statistics import ExecutorStatistics, ToolStatistics

__all__ = ["DEFAULT_MAX_RESULT_CHARS", "Executor", "ExecutorStatistics", "ToolStatistics", "cut"]

DEFAULT_MAX_RESULT_CHARS = 8_000


class Executor:
    """The shipped `engine.interfaces.ToolHost`: runs calls under permits, rates and deadlines; never raises.

    Use it as an async context manager. Leaving it refuses later calls and those that still queue, waits for those
    that run, and closes the tools and the cache. A cancelled call gives its permit back, whether it was queueing,
    throttled or running.

    Equal calls of a visible tool that declares itself pure (or, behind equal calls of the path, dependent on history)
    cause one execution while it runs, and none later where there is a cache; only good results are cached.

    >>> async with Executor([weather]) as executor:                                    # doctest: +SKIP
    ...     await executor.call(ToolCall(name="weather", arguments={"city": "Ulm"}))
    ToolResult(name='weather', text='rain', status='ok', is_cached=False, is_shared=False, duration_s=0.21)
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        *,
        max_result_chars: int = DEFAULT_MAX_RESULT_CHARS,
        cache: CallCache | None = None,
        reuses: bool = True,
        breaker_threshold: int = DEFAULT_THRESHOLD,
        breaker_pause_s: float = DEFAULT_PAUSE_S,
        rng: random.Random | None = None,
    ) -> None:
        """`max_result_chars` binds visible tools: what a model does not read is never cut. `rng` spreads retries.
        Without `reuses` equal calls are as many executions.

        Raises `ConfigError` for two tools of one name.
        """
        self._lanes: dict[str, Lane] = {}
        tools = list(tools)
        for name, tools_of_host in groupby(sorted(tools, key=_host_of), key=_host_of):
            breaker = Breaker(threshold=breaker_threshold, pause_s=breaker_pause_s)
            host = Host(name[1], members := list(tools_of_host), breaker=breaker)
            for tool in members:
                if tool.name in self._lanes:
                    raise ConfigError(f"two tools are called {tool.name!r}")
                spread = rng or random.Random()
                self._lanes[tool.name] = Lane(tool, host=host, is_closed=lambda: self._is_closed, rng=spread)
        self._lanes = {tool.name: self._lanes[tool.name] for tool in tools}
        self._max_result_chars = max_result_chars
        self._cache = cache
        self._reuses = reuses
        self._flights: Flights[ToolResult] = Flights()
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
            if self._cache is not None:
                stack.push_async_callback(self._cache.aclose)
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
            tools={name: lane.statistics for name, lane in self._lanes.items()},
            num_unknown=self._num_unknown,
            num_malformed=self._num_malformed,
        )

    async def call(
        self, call: ToolCall, *, history: Sequence[ToolCall] = (), precedence: Precedence = FIRST_COME
    ) -> ToolResult:
        """Run one call; whatever goes wrong is the result's `status` and one line of text.

        `ok`: the tool's text. `malformed`: not executed, since the renderer could not read it, the tool does not
        exist, or the arguments do not fit. `error`: the tool raised, or its host did not answer. `timeout`:
        `timeout_s` passed. `refused`: the executor is closed, or the host is being left alone. `duration_s` is the
        execution alone, without queueing, and 0 where there was none. Cancelling the caller cancels the tool.
        `history` is what the path called before; `precedence` decides who goes first among calls that wait for permits.
        """
        if call.malformed:
            self._num_malformed += 1
            return ToolResult(name=call.name, text=call.malformed, status="malformed")
        lane = self._lanes.get(call.name)
        if lane is None:
            self._num_unknown += 1
            known = ", ".join(spec.name for spec in self.specs) or "none"
            return ToolResult(name=call.name, text=f"No tool {call.name!r}. Tools: {known}.", status="malformed")
        lane.count(num_calls=1)
        try:
            arguments = lane.tool.check(call.arguments)
        except MalformedCallError as error:
            lane.count(num_malformed=1)
            return self._cut(lane, ToolResult(name=call.name, text=str(error), status="malformed"))
        with self._inside(lane):
            return self._cut(lane, await self._answer(lane, arguments, history, precedence))

    @contextlib.contextmanager
    def _inside(self, lane: Lane) -> Generator[None]:
        self._num_inside += 1
        self._idle.clear()
        try:
            yield
        except asyncio.CancelledError:
            lane.count(num_cancelled=1)
            raise
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._idle.set()

    async def _answer(
        self, lane: Lane, arguments: dict[str, Any], history: Sequence[ToolCall], precedence: Precedence
    ) -> ToolResult:
        may_reuse = self._reuses and lane.tool.visible
        key = call_key(lane.tool, arguments, history=history) if may_reuse else None
        if key is None:
            return await lane.execute(arguments, precedence=precedence)
        result, is_shared = await self._flights.join(
            key, lambda: self._look_or_execute(lane, key, arguments, precedence)
        )
        lane.count(num_cached=result.is_cached)
        if not is_shared or result.is_cached:
            return result
        lane.count(**{"num_shared" if result.was_answered else f"num_{result.status}": 1})
        return msgspec.structs.replace(result, is_shared=True, duration_s=0.0)

    async def _look_or_execute(
        self, lane: Lane, key: bytes, arguments: dict[str, Any], precedence: Precedence
    ) -> ToolResult:
        if self._cache is None or self._is_closed:
            return await lane.execute(arguments, precedence=precedence)
        text = await self._cache.get(key)
        if text is not None:
            return ToolResult(name=lane.tool.name, text=text, is_cached=True)
        result = await lane.execute(arguments, precedence=precedence)
        if result.status == "ok":
            await self._cache.put(key, result.text)
        return result

    def _cut(self, lane: Lane, result: ToolResult) -> ToolResult:
        if not lane.tool.visible or len(result.text) <= self._max_result_chars:
            return result
        lane.count(num_cut=1)
        return msgspec.structs.replace(result, text=cut(result.text, max_chars=self._max_result_chars))


def cut(text: str, *, max_chars: int) -> str:
    """The first `max_chars` characters, and a note of what was left out; the text itself if it is no longer.

    >>> cut("abcdefgh", max_chars=3)
    'abc\\n[cut: 5 of 8 characters left out]'
    """
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut: {len(text) - max_chars} of {len(text)} characters left out]"


def _host_of(tool: Tool) -> tuple[bool, str]:
    """A tool without a host is alone, even where a host has its name."""
    return (True, tool.host) if tool.host else (False, tool.name)
