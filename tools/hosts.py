"""Host: what the tools behind one service share: permits, a rate, a breaker. The only door to `asyncio_throttle`."""

import asyncio
import math
import random
from collections.abc import Iterable

from engine.turnstile import Turnstile
from tools.breaker import Breaker
from tools.schema import Tool

_SMOOTH_FROM = 10.0
"""Calls a second from which on they may come in small bursts; below, one by one."""
_TENTH_S = 0.1
_CATCH_UP = 1.2
"""By how much a tenth of a second may exceed its share: what a busy moment delayed comes in the same second."""
_LOOK_SHARE, _SHORTEST_LOOK_S = 0.002, 0.002
"""How often a window is looked at while somebody waits, as a share of it: lateness is lost for good, once a window."""
_FIRST_WAIT_S = 0.25
_MAX_WAIT_S = 8.0


class Rate:
    """In no second more than `calls_per_s`, and in no tenth of one more than 1.2 times its share: 100 calls/s are no
    burst of 100 once a second. Low rates go one by one."""

    def __init__(self, calls_per_s: float) -> None:
        # The throttler reads the wall clock, so it is not even imported unless a rate is asked for.
        from asyncio_throttle import Throttler

        def throttler(limit: int, period_s: float) -> Throttler:
            look_s = max(period_s * _LOOK_SHARE, _SHORTEST_LOOK_S)
            return Throttler(rate_limit=limit, period=period_s, retry_interval=look_s)

        if calls_per_s < _SMOOTH_FROM:
            self._throttlers = [throttler(1, 1 / calls_per_s)]
        else:
            limit, tenth = round(calls_per_s), math.ceil(calls_per_s * _TENTH_S * _CATCH_UP)
            self._throttlers = [throttler(limit, limit / calls_per_s), throttler(tenth, _TENTH_S)]
        # A throttler wakes every one of its waiters at every look: behind the lock there is one.
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Return when the next call may begin."""
        async with self._turn:
            for throttler in self._throttlers:
                await throttler.acquire()


class Host:
    """One host; its tools wait for each other, and for nobody else."""

    def __init__(self, name: str, tools: Iterable[Tool], *, breaker: Breaker) -> None:
        """The smallest of the tools' limits binds all of them."""
        tools = list(tools)
        self.name = name
        self.breaker = breaker
        self.permits = Turnstile(min(tool.max_concurrency for tool in tools))
        """Whoever waits for one goes by precedence."""
        rates = [tool.calls_per_s for tool in tools if tool.calls_per_s > 0]
        self._rate = Rate(min(rates)) if rates else None

    async def turn(self) -> None:
        """Wait for the rate; done before each attempt, behind a permit."""
        if self._rate is not None:
            await self._rate.wait()


def backoff_s(attempt: int, *, asked_s: float, rng: random.Random) -> float:
    """How long to wait behind a failed attempt, from 0: anything up to a bound that doubles (full jitter), and at
    least what the host asked for.

    >>> backoff_s(3, asked_s=0.0, rng=random.Random(0)) <= 2.0, backoff_s(0, asked_s=7.0, rng=random.Random(0)) >= 7.0
    (True, True)
    """
    return asked_s + rng.uniform(0.0, min(_FIRST_WAIT_S * 2**attempt, _MAX_WAIT_S))
