"""Dialogue: what a client says, in the tokens of the policy's dialect; each message is encoded once, when it is new.

Behind a turn that the policy sampled, only what follows it is encoded: the model's template is rendered around a
placeholder for that turn, and what stands behind the placeholder is kept. So the recorded tokens of a turn stay what
they are, also where the template would render them otherwise.
"""

import re
from collections.abc import Sequence
from uuid import uuid4

import msgspec
import numpy as np

from actors.gateway.said import CallSaid, Message, last_answers
from engine.renderer import Renderer, RendererConfig, make_renderer
from engine.tokenizer import HfTokenizer
from engine.types import Int32, ToolCall, ToolResult, ToolSpec

UNANSWERED = "The call was not answered."
_BREAK = "\u200b"
"""A zero-width space inside the text of a control token: it looks the same and controls nothing."""


class Dialogue:
    """One set of tools in one dialect. Stateless."""

    def __init__(self, tokenizer: HfTokenizer, config: RendererConfig, specs: Sequence[ToolSpec]) -> None:
        """Raises `ConfigError` for tools that the dialect cannot call."""
        self.renderer: Renderer = make_renderer(config, tokenizer=tokenizer, specs=specs)
        self.has_tools = bool(specs)
        self._tokenizer = tokenizer
        self._is_hermes = config.format == "hermes"
        controls = [tokenizer.decode([token]) for token in tokenizer.special_token_ids]
        self._controls = re.compile("|".join(map(re.escape, filter(None, controls))) or r"(?!)")

    def opening(self, messages: Sequence[Message]) -> Int32:
        """Tokens of a whole history, up to the header of the assistant's turn.

        Raises `DataError` where the model's template refuses the messages.
        """
        return self.renderer.render_prompt(self._plain(messages))

    def text(self, prompt: str) -> Int32:
        """Tokens of a bare prompt."""
        return np.array(self._tokenizer.encode(self._harmless(prompt)), dtype=np.int32)

    def calls(self, segment: Int32, *, is_stopped: bool) -> tuple[ToolCall, ...]:
        """The calls a sampled turn asks for; none where one was cut off, or where none can be run."""
        if not self.has_tools or not is_stopped:
            return ()
        calls = self.renderer.parse(segment)
        return calls if any(not call.malformed for call in calls) else ()

    def results(
        self, messages: Sequence[Message], *, calls: Sequence[ToolCall], call_ids: Sequence[str]
    ) -> list[ToolResult]:
        """What became of each call of a turn; `call_ids` are those the client was told."""
        answers = {message.call_id: message for message in messages}
        results: list[ToolResult] = []
        for call, call_id in zip(calls, call_ids, strict=True):
            answer = answers.get(call_id)
            if call.malformed:
                results.append(ToolResult(name=call.name, text=call.malformed, status="malformed"))
            elif answer is None:
                results.append(ToolResult(name=call.name, text=UNANSWERED, status="refused"))
            else:
                status = "error" if answer.is_error else "ok"
                results.append(ToolResult(name=call.name, text=answer.content, status=status))
        return results

    def behind(self, messages: Sequence[Message], *, segment: Int32, results: Sequence[ToolResult]) -> Int32:
        """Tokens to append behind a sampled `segment`: the results of its calls, then what else was said.

        Raises `DataError` where the model's template refuses the messages.
        """
        num_answers = last_answers(messages) if results else 0
        pieces = [self.renderer.render_results(results, segment=segment)] if results else []
        if rest := messages[num_answers:]:
            pieces.append(self._turns(rest, has_ended=not results and self._ends(segment)))
        return np.concatenate(pieces) if pieces else np.empty(0, np.int32)

    def _turns(self, messages: Sequence[Message], *, has_ended: bool) -> Int32:
        placeholder = uuid4().hex
        before = [{"role": "user", "content": "-"}, {"role": "assistant", "content": placeholder}]
        text = self.renderer.prompt_text([*before, *self._plain(messages)]).rpartition(placeholder)[2]
        ids = self._tokenizer.encode(text)
        if has_ended and ids and ids[0] in self.renderer.stop_token_ids:
            ids = ids[1:]  # the policy has said so itself
        return np.array(ids, dtype=np.int32)

    def _ends(self, segment: Int32) -> bool:
        return segment.size > 0 and int(segment[-1]) in self.renderer.stop_token_ids

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """As templates take them: calls and results of turns that we did not sample are text of the dialect."""
        plain: list[dict[str, str]] = []
        for message in messages:
            content = self._harmless(message.content)
            if message.role == "tool":
                block = f"<tool_response>\n{content}\n</tool_response>" if self._is_hermes else _tagged(content)
                plain.append({"role": "user", "content": block})
            else:
                calls = [self._called(call) for call in message.calls]
                plain.append({"role": message.role, "content": "\n".join(filter(None, [content, *calls]))})
        return plain

    def _called(self, call: CallSaid) -> str:
        arguments = self._harmless(call.arguments)
        if self._is_hermes:
            name = msgspec.json.encode(call.name).decode()
            return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
        return f"<{call.name}> {arguments} </{call.name}>"

    def _harmless(self, text: str) -> str:
        """The text without control tokens: a client says something, it does not end turns or begin them."""
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        return self._controls.sub(lambda found: found[0][0] + _BREAK + found[0][1:], text)


def _tagged(content: str) -> str:
    return f"<result>\n{content}\n</result>"
