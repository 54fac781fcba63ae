"""Chat templates: rendered as transformers renders them, in a sandbox."""

import json
from pathlib import Path

import pytest

from engine.chat_template import ChatTemplate
from engine.errors import DataError
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_bpe_tokenizer
from engine.types import ToolSpec

SEARCH = ToolSpec(
    name="search",
    description="Looks <things> up & returns pages",
    parameters={"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
)

# The shape of the templates that come with Qwen 2.5, in words of our own.
TOOL_TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'Be helpful.' }}
    {%- endif %}
    {{- '\\n\\nFunctions, one a line:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {%- if loop.first %}{% continue %}{% endif %}
        {{- raise_exception('no such role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

CONVERSATION = [
    {"role": "system", "content": 'Answer "briefly" & well.'},
    {"role": "user", "content": "Who wrote it? née <b>"},
    {"role": "assistant", "content": "I look."},
    {"role": "tool", "content": "page 1"},
    {"role": "tool", "content": "page 2"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe")
    make_bpe_tokenizer(path, texts=["Who wrote it?"], vocab_size=320)
    return path


def with_template(folder: Path, destination: Path, *, template: str = "", **config: object) -> Path:
    """A copy of a tokenizer's folder with another template file, or another tokenizer_config.json."""
    destination.mkdir()
    (destination / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    text = json.dumps({"eos_token": "<|im_end|>", **config})
    (destination / "tokenizer_config.json").write_text(text, encoding="utf-8")
    if template:
        (destination / "chat_template.jinja").write_text(template, encoding="utf-8")
    return destination


def test_template_renders_as_transformers_does(folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    qwen = with_template(folder, tmp_path / "qwen", template=TOOL_TEMPLATE)
    ours = load_tokenizer(qwen)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(qwen))
    function = {"name": "search", "description": SEARCH.description, "parameters": SEARCH.parameters}
    for messages in (CONVERSATION, CONVERSATION[1:2], CONVERSATION[:2]):
        for specs, tools in (((SEARCH,), [{"type": "function", "function": function}]), ((), None)):
            text = ours.apply_chat_template(messages, tools=specs)
            assert text == theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    text = ours.apply_chat_template(CONVERSATION, tools=(SEARCH,))
    assert "Looks <things> up & returns" in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_block_tags_on_lines_of_their_own_leave_no_trace(folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    template = "{% if tools is none %}\n  {% for m in messages %}\n{{ m.content }}!\n  {% endfor %}\n{% endif %}"
    qwen = with_template(folder, tmp_path / "blocks", template=template)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(qwen))
    text = load_tokenizer(qwen).apply_chat_template(CONVERSATION[1:3])
    assert text == theirs.apply_chat_template(CONVERSATION[1:3], tokenize=False, add_generation_prompt=True)
    assert text == "Who wrote it? née <b>!\nI look.!\n"


def test_template_that_refuses_the_messages_raises_a_data_error(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(with_template(folder, tmp_path / "q", template=TOOL_TEMPLATE))
    with pytest.raises(DataError, match="no such role: judge"):
        tokenizer.apply_chat_template([*CONVERSATION, {"role": "judge", "content": ""}])


def test_template_cannot_leave_its_sandbox() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", special_tokens={}, source="t")
    with pytest.raises(DataError, match="SecurityError"):
        template.render([])


def test_named_templates_are_chosen_by_whether_there_are_tools(folder: Path, tmp_path: Path) -> None:
    entries = [
        {"name": "default", "template": "{{ eos_token }}"},
        {"name": "tool_use", "template": "{{ tools|length }}"},
    ]
    tokenizer = load_tokenizer(with_template(folder, tmp_path / "named", chat_template=entries))
    assert tokenizer.apply_chat_template([]) == "<|im_end|>"
    assert tokenizer.apply_chat_template([], tools=(SEARCH,)) == "1"


def test_folder_without_a_template_gets_a_plain_one(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(with_template(folder, tmp_path / "plain"))
    messages = [{"role": "user", "content": "1 + 1?"}]
    assert tokenizer.apply_chat_template(messages) == "user: 1 + 1?\n\nassistant:"
    assert tokenizer.apply_chat_template(messages, tools=(SEARCH,)).startswith('tools: [{"type": "function"')
