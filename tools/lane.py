"""Lane: one tool on its way through its host: permit, rate, attempts under one deadline, and what is counted of it.

    breaker ──► permit ──► rate ──► deadline( attempt ──► host did not answer? wait, rate, again ) ──► ToolResult

| stage   | waits for                 | unblocked by                           |
|---------|---------------------------|----------------------------------------|
| permit  | one of the host's permits | the deadline of an execution before it |
| rate    | its turn                  | the clock                              |
| attempt | the tool                  | `timeout_s`, as are waits for another  |
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from engine.errors import ArpoError, ToolError, boundary, own_cancellation
from engine.turnstile import Precedence
from engine.types import ToolResult, ToolStatus
from tools.breaker import Admission
from tools.hosts import Host, backoff_s
from tools.latency import LatencyRecorder
from tools.schema import MalformedCallError, Tool, UnavailableError
from tools.tool_statistics import ToolStatistics

logger = logging.getLogger(__name__)

_CLOSED = "the tools are closed"
_LEFT_ALONE = "{} does not answer, and is left alone for now. Go on without it"


class Lane:
    """One tool and its counters."""

    def __init__(self, tool: Tool, *, host: Host, is_closed: Callable[[], bool], rng: random.Random) -> None:
        """`is_closed` says whether calls that still queue are refused by now; `rng` spreads retries."""
        self.tool = tool
        self.host = host
        self._is_closed = is_closed
        self._rng = rng
        self._counts: Counter[str] = Counter()
        self._slowest_s = 0.0
        self._latency = LatencyRecorder()

    @property
    def statistics(self) -> ToolStatistics:
        return ToolStatistics(**self._counts, slowest_s=self._slowest_s, latency=self._latency.snapshot())

    def count(self, **changes: float) -> None:
        """Add to counters by name."""
        for name, by in changes.items():
            self._counts[name] += by

    async def execute(self, arguments: dict[str, Any], *, precedence: Precedence) -> ToolResult:
        """Run with checked arguments, uncut. Everything but cancellation is a result."""
        if self._is_closed():
            return self._refusal(_CLOSED)
        if self.host.breaker.is_open(now_s=_now_s()):
            return self._refusal(_LEFT_ALONE.format(self.host.name))
        await self._queue(precedence)
        try:
            if self._is_closed():
                return self._refusal(_CLOSED)
            # It may have opened while the call queued.
            admission = self.host.breaker.admit(now_s=_now_s())
            if admission == "refused":
                return self._refusal(_LEFT_ALONE.format(self.host.name))
            try:
                return await self._run(arguments, admission)
            except asyncio.CancelledError:
                self.host.breaker.withdraw(is_probe=admission == "probe")
                raise
        finally:
            self.host.permits.leave()

    async def _queue(self, precedence: Precedence) -> None:
        """Wait for a permit, which the caller gives back, and for the rate; whoever ends here has no permit."""
        asked_s = _now_s()
        self.count(num_waiting=1)
        try:
            await self.host.permits.enter(precedence)
            try:
                if not self._is_closed():
                    await self.host.turn()
            except BaseException:
                self.host.permits.leave()
                raise
        finally:
            self.count(num_waiting=-1, queued_s=_now_s() - asked_s)

    async def _run(self, arguments: dict[str, Any], admission: Admission) -> ToolResult:
        tool, breaker = self.tool, self.host.breaker
        status: ToolStatus = "ok"
        has_answered = True
        began_s = _now_s()
        self.count(num_running=1)
        try:
            # A TimeoutError of the tool itself becomes a ToolError inside, so the one that gets out is the deadline's.
            async with asyncio.timeout(tool.timeout_s):
                text = await self._attempts(arguments)
        except TimeoutError:
            # Whether a tool without a host takes too long is up to its arguments, as with a program.
            has_answered = not tool.host
            status, text = "timeout", f"{tool.name}: no result after {tool.timeout_s:g} s."
        except MalformedCallError as error:
            status, text = "malformed", str(error)
        except ToolError as error:
            has_answered = not isinstance(error, UnavailableError)
            status, text = "error", _one_line(str(error))
            logger.debug("tool %s failed", tool.name, exc_info=error)
        finally:
            self.count(num_running=-1)
        if has_answered:
            breaker.succeeded()
        else:
            breaker.failed(now_s=_now_s(), is_probe=admission == "probe")
        return self._result(text, status, duration_s=_now_s() - began_s)

    async def _attempts(self, arguments: dict[str, Any]) -> str:
        """Try until the host answers, or there are no retries left; the last failure is raised."""
        for attempt in range(self.tool.max_retries):
            try:
                return await self._attempt(arguments)
            except UnavailableError as error:
                logger.debug("tool %s, attempt %d: %s", self.tool.name, attempt + 1, error)
                await asyncio.sleep(backoff_s(attempt, asked_s=error.retry_after_s, rng=self._rng))
            self.count(num_retries=1)
            await self.host.turn()
        return await self._attempt(arguments)

    async def _attempt(self, arguments: dict[str, Any]) -> str:
        try:
            with own_cancellation(ToolError, self.tool.name), boundary(ToolError, self.tool.name):
                return await self.tool.run(arguments)
        except ToolError:
            raise
        except ArpoError as error:  # of an engine that the tool itself asks
            raise ToolError(f"{self.tool.name}: {error}") from error

    def _result(self, text: str, status: ToolStatus, *, duration_s: float) -> ToolResult:
        self.count(busy_s=duration_s, **{f"num_{status}": 1})
        self._slowest_s = max(self._slowest_s, duration_s)
        self._latency.add(duration_s)
        return ToolResult(name=self.tool.name, text=text, status=status, duration_s=duration_s)

    def _refusal(self, reason: str) -> ToolResult:
        self.count(num_refused=1)
        return ToolResult(name=self.tool.name, text=f"{self.tool.name}: {reason}.", status="refused")


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _one_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "failed without a message")
