"""ChatTemplate: messages into the text a model was trained on; the door to jinja2.

Templates are those of Hugging Face folders, rendered with the environment they are written for: a sandbox with
`trim_blocks` and `lstrip_blocks`, loop controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now` and
a `generation` block that only passes its body on.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engine.errors import DataError, boundary
from engine.types import ToolSpec

if TYPE_CHECKING:
    from jinja2 import Template

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Turns between `<|im_start|>` and `<|im_end|>`; tools are not described."""

PLAIN_TEMPLATE = (
    "{% if tools %}{{ 'tools: ' + (tools | tojson) + '\\n\\n' }}{% endif %}"
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""What a folder without a template gets: `user: 1 + 1?`, a blank line, `assistant:`."""


class ChatTemplate:
    """One or two templates of a model: the ordinary one, and the one for conversations with tools.

    `special_tokens` are the variables a template may name, such as `bos_token` and `eos_token`. Raises `DataError`,
    naming `source`, for a template that does not compile.
    """

    def __init__(self, template: str, *, tool_template: str = "", special_tokens: dict[str, str], source: str) -> None:
        self.source = source
        self._text = template
        self._special_tokens = special_tokens
        with boundary(DataError, f"{source}: chat template"):
            self._template = _compile(template)
            self._tool_template = _compile(tool_template) if tool_template else self._template

    def mentions(self, token: str) -> bool:
        """Whether the ordinary template writes `token`."""
        return token in self._text

    def render(self, messages: Sequence[dict[str, str]], *, tools: Sequence[ToolSpec] = ()) -> str:
        """Text up to and including the header of the assistant's turn.

        Raises `DataError` where the template refuses the messages (for example roles that do not alternate).
        """
        template = self._tool_template if tools else self._template
        with boundary(DataError, f"{self.source}: chat template"):
            return template.render(
                messages=list(messages),
                tools=[as_function(spec) for spec in tools] or None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )


def as_function(spec: ToolSpec) -> dict[str, Any]:
    """A tool as templates and OpenAI's interface expect it: `{"type": "function", "function": {...}}`."""
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Templates call this filter, some with positional arguments, so its signature is not ours to choose.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _compile(template: str) -> "Template":
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what the assistant wrote; rendering needs only what is inside."""

        tags = {"generation"}  # noqa: RUF012 - the attribute is jinja2's

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception  # pyright: ignore[reportArgumentType]
    environment.globals["strftime_now"] = _strftime_now  # pyright: ignore[reportArgumentType]
    return environment.from_string(template)
