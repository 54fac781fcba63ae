"""HermesRenderer: the format of Hermes and Qwen models, tool calls as JSON in ChatML turns.

A turn asks for tools with any number of `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` blocks. The answer
ends the turn where the policy did not, and holds one user turn and the header of the next assistant turn:

    <|im_end|>
    <|im_start|>user
    <tool_response>
    text
    </tool_response><|im_end|>
    <|im_start|>assistant

The model's chat template describes the tools.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from engine.errors import ConfigError
from engine.interfaces import Tokenizer
from engine.renderer_results import ResultEncoder
from engine.types import Int32, ToolCall, ToolResult, ToolSpec

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_FORM = f'Write {_OPENING}{{"name": ..., "arguments": {{...}}}}{_CLOSING}.'
_MAX_DEPTH = 32


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any]


_DECODER = msgspec.json.Decoder(_Call)


class HermesRenderer:
    """Implements `engine.renderer.Renderer`. Raises `ConfigError` for a tokenizer without ChatML's tokens."""

    def __init__(
        self, tokenizer: Tokenizer, *, specs: Sequence[ToolSpec], max_result_tokens: int, max_calls_per_turn: int
    ) -> None:
        self._tokenizer = tokenizer
        self._specs = tuple(specs)
        self._max_calls = max_calls_per_turn
        self._results = ResultEncoder(tokenizer, tags=("tool_call", "tool_response"), max_tokens=max_result_tokens)
        for token in ("<|im_start|>", "<|im_end|>"):
            if len(tokenizer.encode(token)) != 1:
                raise ConfigError(f'renderer.format = "hermes": the tokenizer has no token {token}')
        self._turn_end = tokenizer.encode("<|im_end|>")[0]
        self._header = tokenizer.encode("\n<|im_start|>user")
        self._before = tokenizer.encode("\n<tool_response>\n")
        self._behind = tokenizer.encode("</tool_response>")
        self._next_turn = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """None: a turn may hold several calls, and ends with its own token."""
        return ()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """`<|im_end|>`, and what else ends a turn or a text."""
        return tuple(dict.fromkeys((self._turn_end, *self._tokenizer.eos_token_ids)))

    @property
    def call_openings(self) -> tuple[str, ...]:
        """The tag before the JSON of a call."""
        return (_OPENING,)

    def prompt_text(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation, the tools described by the template, up to the assistant's header."""
        return self._tokenizer.apply_chat_template(messages, tools=self._specs)

    def render_prompt(self, messages: Sequence[dict[str, str]]) -> Int32:
        """Tokens of `prompt_text`."""
        return np.array(self._tokenizer.encode(self.prompt_text(messages)), dtype=np.int32)

    def parse(self, token_ids: Sequence[int] | Int32) -> tuple[ToolCall, ...]:
        """All calls of the turn, in order; those beyond the limit are one malformed call at the end."""
        head, *pieces = self.text(token_ids).split(_OPENING)
        calls = [_malformed(f"{_CLOSING} came without {_OPENING} before it")] if _CLOSING in head else []
        for piece in pieces:
            body, closing, _ = piece.partition(_CLOSING)
            calls.append(_read_call(body) if closing else _malformed(f"{_OPENING} was not closed by {_CLOSING}"))
        if (num_refused := len(calls) - self._max_calls) > 0:
            reason = f"{num_refused} calls were not run: a turn may hold {self._max_calls} at most."
            calls[self._max_calls :] = [ToolCall(name="tool_call", arguments={}, malformed=reason)]
        return tuple(calls)

    def render_results(self, results: Sequence[ToolResult], *, segment: Sequence[int] | Int32) -> Int32:
        """One user turn with a `<tool_response>` block for each result, then the assistant's header."""
        has_ended = len(segment) > 0 and int(segment[-1]) == self._turn_end
        ids = [] if has_ended else [self._turn_end]
        ids += self._header
        for result in results:
            ids += [*self._before, *self._results.encode(result.text), *self._behind]
        return np.array([*ids, *self._next_turn], dtype=np.int32)

    def text(self, token_ids: Sequence[int] | Int32) -> str:
        """The tokens as text, control tokens included."""
        return self._tokenizer.decode(np.asarray(token_ids).tolist())


def _read_call(body: str) -> ToolCall:
    try:
        call = _DECODER.decode(body.strip())
    # A deep enough nesting exhausts the stack of any JSON reader.
    except (msgspec.DecodeError, RecursionError) as error:
        return _malformed(str(error))
    if not call.name or not _fits_the_wire(call.arguments):
        return _malformed("the name is empty, or an argument is nested too deep or a number too large", name=call.name)
    return ToolCall(name=call.name, arguments=call.arguments)


def _malformed(reason: str, *, name: str = "") -> ToolCall:
    return ToolCall(
        name=name or "tool_call", arguments={}, malformed=f"The call was not run: {reason.rstrip('.')}. {_FORM}"
    )


def _fits_the_wire(value: Any, *, depth: int = 0) -> bool:
    """Whether msgpack, in which calls are journaled, can carry the value: 64-bit numbers, bounded nesting."""
    match value:
        case dict() | list():
            items: list[Any] = list(value.values() if isinstance(value, dict) else value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
            return depth < _MAX_DEPTH and all(_fits_the_wire(item, depth=depth + 1) for item in items)
        case int():
            return -(2**63) <= value < 2**64
        case _:
            return True
