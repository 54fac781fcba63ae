"""The hermes format: every call of a turn, and answers as the chat template writes them."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.renderer import Renderer, RendererConfig, make_renderer
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import make_bpe_tokenizer
from engine.types import ToolCall, ToolResult, ToolSpec

HERMES_TEMPLATE = """
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- for tool in tools or [] %}{{- tool.function.name + '\\n' }}{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
"""


SPECS = tuple(ToolSpec(name=name, description=name, parameters={"type": "object"}) for name in ("search", "python"))


def result(text: str) -> ToolResult:
    return ToolResult(name="search", text=text)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    texts = ["The page says: 東京 is the capital", '{"name": "search", "arguments": {}}']
    # As in Qwen, the tags of a call are single ordinary tokens.
    make_bpe_tokenizer(folder, texts=texts * 3, vocab_size=400, special_tokens=("<tool_call>", "</tool_call>"))
    (folder / "chat_template.jinja").write_text(HERMES_TEMPLATE, encoding="utf-8")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def hermes(tokenizer: HfTokenizer) -> Renderer:
    config = RendererConfig(format="hermes", max_calls_per_turn=3)
    return make_renderer(config, tokenizer=tokenizer, specs=SPECS)


def call_text(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def without_tags(value: dict[str, Any]) -> bool:
    return "tool_call>" not in json.dumps(value)


@given(
    calls=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3).filter(without_tags), min_size=1, max_size=3),
    between=st.sampled_from(["", "\n", " and then "]),
    end=st.sampled_from(["", "<|im_end|>"]),
)
def test_hermes_finds_every_call_of_a_turn(
    tokenizer: HfTokenizer, hermes: Renderer, calls: list[dict[str, Any]], between: str, end: str
) -> None:
    text = "I look." + between.join(call_text("search", arguments) for arguments in calls) + end
    assert hermes.parse(tokenizer.encode(text)) == tuple(ToolCall(name="search", arguments=a) for a in calls)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"name": "search"}', "missing required field `arguments`"),
        ('{"name": "search", "arguments": "who"}', "Expected `object`"),
        ('{"name": "search", "arguments": {}, "id": 1}', "unknown field `id`"),
        ('{"name": "", "arguments": {}}', "the name is empty"),
        ('{"name": "search", "arguments": {"a": 123456789012345678901234567890}}', "number too large"),
        ('{"name": "search", "arguments": {"a": ' + "[" * 40 + "]" * 40 + "}}", "nested too deep"),
        ('{"name": "search", "arguments": {"a": ' + "[" * 5000 + "]" * 5000 + "}}", "recursion"),
    ],
)
def test_hermes_call_that_cannot_run_says_so_to_the_policy(
    tokenizer: HfTokenizer, hermes: Renderer, body: str, problem: str
) -> None:
    ids = tokenizer.encode(f"<tool_call>{body}</tool_call>{call_text('python', {'code': '1'})}")
    bad, good = hermes.parse(ids)
    assert problem in bad.malformed
    assert bad.arguments == {}
    assert good == ToolCall(name="python", arguments={"code": "1"})


def test_hermes_tags_without_their_pair_are_malformed(tokenizer: HfTokenizer, hermes: Renderer) -> None:
    assert hermes.parse(tokenizer.encode("I am done.<|im_end|>")) == ()
    (stray,) = hermes.parse(tokenizer.encode("{}</tool_call>"))
    (unclosed,) = hermes.parse(tokenizer.encode('<tool_call>{"name": "search"<|im_end|>'))
    assert "without <tool_call>" in stray.malformed
    assert "was not closed" in unclosed.malformed


def test_hermes_calls_beyond_the_limit_are_refused_together(tokenizer: HfTokenizer, hermes: Renderer) -> None:
    calls = hermes.parse(tokenizer.encode(call_text("search", {}) * 9))
    assert [call.malformed for call in calls[:3]] == ["", "", ""]
    assert [call.malformed for call in calls[3:]] == ["6 calls were not run: a turn may hold 3 at most."]


@pytest.mark.parametrize("end", ["", "<|im_end|>"])
def test_hermes_path_reads_as_the_chat_template_writes_the_conversation(
    tokenizer: HfTokenizer, hermes: Renderer, end: str
) -> None:
    messages = [{"role": "user", "content": "who?"}]
    turn = call_text("search", {"query": "who"}) * 2
    segment = tokenizer.encode(turn + end)
    answer = hermes.render_results([result("page 1"), result("page 2")], segment=segment)
    path = [*hermes.render_prompt(messages), *segment, *answer]
    conversation = [
        *messages,
        {"role": "assistant", "content": turn},
        {"role": "tool", "content": "page 1"},
        {"role": "tool", "content": "page 2"},
    ]
    names = "search\npython\n"
    assert hermes.text(path).replace(names, "") == tokenizer.apply_chat_template(conversation)
    assert names in hermes.text(path[: len(path) - len(answer)])


def test_hermes_stops_at_the_end_of_a_turn(tokenizer: HfTokenizer, hermes: Renderer) -> None:
    assert hermes.stop_strings == ()
    assert hermes.stop_token_ids[0] == tokenizer.encode("<|im_end|>")[0]


class LettersOnly:
    """A tokenizer that knows no special token; implements `engine.interfaces.Tokenizer`."""

    vocab_size = 128
    eos_token_ids = (0,)

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    encode_plain = encode

    def decode(self, token_ids: Any) -> str:
        return "".join(map(chr, token_ids))

    def apply_chat_template(self, messages: Any, *, tools: Any = ()) -> str:
        return "".join(message["content"] for message in messages)


def test_hermes_refuses_a_tokenizer_without_chatml() -> None:
    with pytest.raises(ConfigError, match=re.escape("the tokenizer has no token <|im_start|>")):
        make_renderer(RendererConfig(format="hermes"), tokenizer=LettersOnly(), specs=())
