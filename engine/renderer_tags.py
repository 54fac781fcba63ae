"""TagRenderer: the ARPO format, tool calls as tags in running text.

A segment that asks for a tool ends `<search> query </search>`; the answer is appended as

    ` <result>` line break, text, line break, `</result>`

with one space before and nothing behind it, as in the paper's released rollouts (vllm_rollout_with_tools.py, L425).
The tag is the tool's name and the content its single required string parameter. The system prompt of the data set
explains the tags, so the tools are not described again.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.errors import ConfigError
from engine.interfaces import Tokenizer
from engine.renderer_results import ResultEncoder
from engine.types import Int32, ToolCall, ToolResult, ToolSpec

_RESERVED = ("think", "result", "answer")


class TagRenderer:
    """Implements `engine.renderer.Renderer`. Raises `ConfigError` for a tool that a tag cannot call."""

    def __init__(self, tokenizer: Tokenizer, *, specs: Sequence[ToolSpec], max_result_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._parameters = {spec.name: _parameter(spec) for spec in specs}
        names = "|".join(self._parameters)
        self._closing = re.compile(f"</({names})>") if names else re.compile(r"(?!)")
        self._results = ResultEncoder(tokenizer, tags=(*_RESERVED, *self._parameters), max_tokens=max_result_tokens)
        self._before = tokenizer.encode(" <result>\n")
        self._behind = tokenizer.encode("</result>")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The closing tags of the tools."""
        return tuple(f"</{name}>" for name in self._parameters)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends the text."""
        return self._tokenizer.eos_token_ids

    @property
    def call_openings(self) -> tuple[str, ...]:
        """The opening tags of the tools."""
        return tuple(f"<{name}>" for name in self._parameters)

    def prompt_text(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation up to the header of the assistant's turn."""
        return self._tokenizer.apply_chat_template(messages)

    def render_prompt(self, messages: Sequence[dict[str, str]]) -> Int32:
        """Tokens of `prompt_text`."""
        return np.array(self._tokenizer.encode(self.prompt_text(messages)), dtype=np.int32)

    def parse(self, token_ids: Sequence[int] | Int32) -> tuple[ToolCall, ...]:
        """The call whose closing tag ends the segment; at most one.

        A token may complete the tag and hold more, as `>\\n` or `>.` does; the tag still ends the segment. Earlier
        calls in the segment, and a tag behind which the policy went on, count for nothing.
        """
        if len(token_ids) and token_ids[-1] in self.stop_token_ids:
            return ()  # it went on: with the end of its text
        text = self.text(token_ids)
        closings = list(self._closing.finditer(text))
        if not closings:
            return ()
        last = closings[-1]
        if text[last.end() :].strip():
            before_last_token = self._closing.findall(self.text(token_ids[:-1]))
            if len(before_last_token) == len(closings):
                return ()
        return (self._call(last[1], text[: last.start()]),)

    def _call(self, name: str, text: str) -> ToolCall:
        opening = text.rfind(f"<{name}>")
        if opening <= text.rfind(f"</{name}>"):
            problem = f"</{name}> came without <{name}> before it."
        elif content := text[opening + len(name) + 2 :].strip():
            return ToolCall(name=name, arguments={self._parameters[name]: content})
        else:
            problem = f"there was nothing between <{name}> and </{name}>."
        form = f"<{name}> {self._parameters[name]} </{name}>"
        return ToolCall(name=name, arguments={}, malformed=f"The call was not run: {problem} Write {form}.")

    def render_results(self, results: Sequence[ToolResult], *, segment: Sequence[int] | Int32) -> Int32:
        """One `<result>` block for each result; how the segment ended makes no difference."""
        del segment
        ids: list[int] = []
        for result in results:
            ids += [*self._before, *self._results.encode(result.text), *self._behind]
        return np.array(ids, dtype=np.int32)

    def text(self, token_ids: Sequence[int] | Int32) -> str:
        """The tokens as text, control tokens included."""
        return self._tokenizer.decode(np.asarray(token_ids).tolist())


def _parameter(spec: ToolSpec) -> str:
    """Name of the parameter that the content of the tag becomes."""
    key = 'renderer.format = "arpo"'
    if spec.name in _RESERVED or not re.fullmatch(r"\w[\w-]*", spec.name):
        raise ConfigError(f"{key}: {spec.name!r} cannot be a tag for a tool")
    required: list[str] = spec.parameters.get("required", [])
    properties: dict[str, dict[str, Any]] = spec.parameters.get("properties", {})
    if len(required) != 1 or properties.get(required[0], {}).get("type") != "string":
        raise ConfigError(f"{key}: tool {spec.name!r} needs exactly one required parameter, a string, got {required}")
    return required[0]
