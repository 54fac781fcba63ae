"""Tools that misbehave on purpose, and a host that answers from a script: shipped fakes for tests and simulations."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from engine.turnstile import FIRST_COME, Precedence
from engine.types import ToolCall, ToolResult, ToolSpec
from tools.schema import Tool, UnavailableError, tool

Answer = str | ToolResult | Sequence[str | ToolResult] | Callable[[ToolCall], str | ToolResult]
"""What a scripted tool says: always this, or these in turn (the last one for ever), or what a function of the call
returns."""

Behaviour = Literal["ok", "raises", "down", "hangs"]
"""`raises`: the tool fails; `down`: its host does not answer; `hangs`: nothing comes back."""


class ScriptedTools:
    """A `ToolHost` whose results and latencies are given beforehand; it waits by `asyncio.sleep` alone.

    It records what was asked (`calls`) and how many calls overlapped (`max_running`). Calls of tools it has no answer
    for, and malformed ones, come back `malformed`, as from an `Executor`. Under `engine.clock.run_virtual`:

    >>> async def main() -> tuple[str, float]:
    ...     tools = ScriptedTools({"search": ["Page 1: no", "Page 1: yes"]}, latency_s=2.0)
    ...     await tools.call(ToolCall(name="search", arguments={"query": "a"}))
    ...     result = await tools.call(ToolCall(name="search", arguments={"query": "a"}))
    ...     return result.text, result.duration_s
    >>> from engine.clock import run_virtual
    >>> run_virtual(main())
    ('Page 1: yes', 2.0)
    """

    def __init__(
        self,
        answers: Mapping[str, Answer],
        *,
        latency_s: float | Callable[[ToolCall], float] = 0.0,
        hidden: Sequence[str] = ("reward",),
    ) -> None:
        self._answers = dict(answers)
        self._latency_s = latency_s
        self._hidden = frozenset(hidden)
        self._num_answers: dict[str, int] = {}
        self.calls: list[ToolCall] = []
        self.num_running = 0
        self.max_running = 0

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """One argument of text for each tool, as in the tag format: `code` for python, `query` for the others."""
        return tuple(
            _text_spec(name, argument="code" if name == "python" else "query")
            for name in self._answers
            if name not in self._hidden
        )

    async def call(
        self, call: ToolCall, *, history: Sequence[ToolCall] = (), precedence: Precedence = FIRST_COME
    ) -> ToolResult:
        self.calls.append(call)
        if call.malformed:
            return ToolResult(name=call.name, text=call.malformed, status="malformed")
        if call.name not in self._answers:
            return ToolResult(name=call.name, text=f"No tool {call.name!r}.", status="malformed")
        latency_s = self._latency_s(call) if callable(self._latency_s) else self._latency_s
        answer = self._answer(call)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            await asyncio.sleep(latency_s)
        finally:
            self.num_running -= 1
        if isinstance(answer, ToolResult):
            return answer
        return ToolResult(name=call.name, text=answer, duration_s=latency_s)

    def _answer(self, call: ToolCall) -> str | ToolResult:
        answer = self._answers[call.name]
        if callable(answer):
            return answer(call)
        if isinstance(answer, str | ToolResult):
            return answer
        index = self._num_answers.get(call.name, 0)
        self._num_answers[call.name] = index + 1
        return answer[min(index, len(answer) - 1)]


def _text_spec(name: str, *, argument: str) -> ToolSpec:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }
    return ToolSpec(name=name, description=f"Scripted {name}.", parameters=parameters)


def slow_tool(*, latency_s: float, **limits: Any) -> Tool:
    """`slow(query)`: repeats the query after `latency_s` seconds; `limits` are fields of `Tool`."""

    @tool(**limits)
    async def slow(query: str) -> str:
        """Repeat the query after a while."""
        await asyncio.sleep(latency_s)
        return query

    return slow


def hanging_tool(*, timeout_s: float = 30.0) -> Tool:
    """`hanging()`: never returns; only a deadline or cancellation ends it."""

    @tool(timeout_s=timeout_s)
    async def hanging() -> str:
        """Wait for ever."""
        return str(await asyncio.Event().wait())

    return hanging


def raising_tool(error: Exception) -> Tool:
    """`raising()`: raises `error` each time."""

    @tool
    async def raising() -> str:
        """Fail."""
        raise error

    return raising


def unsteady_tool(behaviours: Iterable[Behaviour], *, latency_s: float = 0.0, **limits: Any) -> Tool:
    """`unsteady(query)`: each attempt takes `latency_s` and behaves as the next word says; "ok" when they are used up.

    `limits` are fields of `Tool`.
    """
    left = iter(behaviours)

    @tool(**limits)
    async def unsteady(query: str) -> str:
        """Repeat the query, or fail."""
        behaviour = next(left, "ok")
        await asyncio.sleep(latency_s)
        if behaviour == "hangs":
            await asyncio.Event().wait()
        if behaviour == "down":
            raise UnavailableError("connection refused")
        if behaviour == "raises":
            raise ValueError("a bad day")
        return query

    return unsteady


def flooding_tool(*, num_chars: int) -> Tool:
    """`flooding()`: answers with `num_chars` characters."""

    @tool
    async def flooding() -> str:
        """Answer at great length."""
        return "x" * num_chars

    return flooding
