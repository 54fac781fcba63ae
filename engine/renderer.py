"""Renderer: between conversations and tokens; what a policy's tokens ask for, and how an answer is put to it.

Token in, token out: a renderer encodes prompts and tool results, once each, and decodes sampled tokens to read them;
it never encodes again what the policy sampled. Two formats:

* `arpo`: tags in running text, `<search> query </search> <result> ... </result>`, one call a segment (`renderer_tags`).
* `hermes`: `<tool_call>{json}</tool_call>` blocks in ChatML turns, several calls a turn (`renderer_hermes`).
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from engine.config import Positive, Section
from engine.interfaces import Tokenizer
from engine.renderer_hermes import HermesRenderer
from engine.renderer_tags import TagRenderer
from engine.types import Int32, ToolCall, ToolResult, ToolSpec


class RendererConfig(Section, frozen=True):
    """The dialect in which policy and tools talk."""

    format: Literal["arpo", "hermes"] = "arpo"
    """`arpo`: tags in running text, one call a segment. `hermes`: `<tool_call>` blocks of JSON in chat turns, as Qwen's
    models were trained with."""
    max_result_tokens: Positive = 1024
    """A longer tool result is cut there, and a short note says so; note and markup come on top."""
    max_calls_per_turn: Positive = 8
    """`hermes` only: calls of one turn beyond these are refused together, with one malformed call."""


class Renderer(Protocol):
    """One dialect. Stateless: safe to share by all paths of a run."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """A segment ends with the token that completes one of these."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """A segment ends with one of these tokens."""
        ...

    @property
    def call_openings(self) -> tuple[str, ...]:
        """A call begins with one of these in the text of a segment; what stands before it is meant for people."""
        ...

    def prompt_text(self, messages: Sequence[dict[str, str]]) -> str:
        """The text whose tokens `render_prompt` gives."""
        ...

    def render_prompt(self, messages: Sequence[dict[str, str]]) -> Int32:
        """Tokens of a conversation, `{"role": ..., "content": ...}` each, up to the header of the assistant's turn.

        Raises `DataError` where the model's chat template refuses the messages.
        """
        ...

    def parse(self, token_ids: Sequence[int] | Int32) -> tuple[ToolCall, ...]:
        """The calls that end a segment; empty for a final one. Never raises, whatever was sampled.

        `token_ids` are all tokens sampled since the last observation, those a branch inherited included. A call that
        cannot be executed comes back with `malformed`, a sentence the policy reads as its result.
        """
        ...

    def render_results(self, results: Sequence[ToolResult], *, segment: Sequence[int] | Int32) -> Int32:
        """Tokens to append behind `segment`: the results of its calls, in order.

        The text of a result is data: what it contains of the dialect's tags comes out with `&lt;` and `&gt;`, and
        what it contains of control tokens is encoded as ordinary characters.
        """
        ...

    def text(self, token_ids: Sequence[int] | Int32) -> str:
        """The tokens as text, control tokens included."""
        ...


def make_renderer(config: RendererConfig, *, tokenizer: Tokenizer, specs: Sequence[ToolSpec]) -> Renderer:
    """The renderer of a run. Raises `ConfigError` for tools or a tokenizer that the format cannot work with."""
    match config.format:
        case "arpo":
            return TagRenderer(tokenizer, specs=specs, max_result_tokens=config.max_result_tokens)
        case "hermes":
            return HermesRenderer(
                tokenizer,
                specs=specs,
                max_result_tokens=config.max_result_tokens,
                max_calls_per_turn=config.max_calls_per_turn,
            )
