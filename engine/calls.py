"""Calls: what a tool is to a model, one call of it, and what that came to; part of the vocabulary in `types`."""

from typing import Any, Literal

import msgspec


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is told about a tool, and what a call is checked against."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments, an object."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call found in sampled tokens. Produced by the renderer, consumed by the executor."""

    name: str
    arguments: dict[str, Any]
    malformed: str = ""
    """Why the call cannot be executed; empty for a good one. The model reads it as the result."""


ToolStatus = Literal["ok", "error", "timeout", "refused", "malformed"]
CallOutcome = Literal["executed", "cached", "shared", "refused", "malformed"]


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a call came to; failures are results too. Produced by the executor, shown to the model as text."""

    name: str
    text: str
    status: ToolStatus = "ok"
    is_cached: bool = False
    """True where the result of an earlier execution was used again."""
    is_shared: bool = False
    """True where it is that of an equal call, which was being executed at the time."""
    duration_s: float = 0.0

    @property
    def was_answered(self) -> bool:
        """True where a tool answered, be it by another call's execution: what the budget of a path counts."""
        return self.status in ("ok", "error", "timeout")

    @property
    def was_executed(self) -> bool:
        """True where the tool really ran for this call: what all other budgets count."""
        return self.was_answered and not self.is_cached and not self.is_shared

    @property
    def outcome(self) -> CallOutcome:
        """What the call came to, in the one way in which all calls are counted apart."""
        if not self.was_answered:
            return "refused" if self.status == "refused" else "malformed"
        return "cached" if self.is_cached else "shared" if self.is_shared else "executed"
