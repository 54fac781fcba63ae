"""Tokenizers: what goes in comes out, data cannot become control, templates render as transformers renders them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.chat_template import ChatTemplate
from engine.errors import DataError
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import ARPO_TAGS, CONTROL_TOKENS, make_bpe_tokenizer, make_word_tokenizer
from engine.types import ToolSpec

TEXTS = ["Who wrote the book? The author wrote it in 1926.", "print(2 + 2)\nprint('four')", "née Müller, 東京"]
WORDS = ["anna", "mother", "of", "who", "is", "?", "1987", "+", "print"]

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
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    make_bpe_tokenizer(folder, texts=TEXTS, vocab_size=320)
    return folder


@pytest.fixture(scope="module")
def bpe(bpe_folder: Path) -> HfTokenizer:
    return load_tokenizer(bpe_folder)


@pytest.fixture(scope="module")
def word(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    folder = tmp_path_factory.mktemp("word")
    make_word_tokenizer(folder, words=WORDS)
    return load_tokenizer(folder)


def copy_with(folder: Path, destination: Path, **files: object) -> Path:
    """A copy of a tokenizer's folder with files replaced; `None` leaves one out, a str is text, else JSON."""
    destination.mkdir()
    contents: dict[str, object] = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    contents.update({name.replace("_json", ".json").replace("_jinja", ".jinja"): c for name, c in files.items()})
    for name, content in contents.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (destination / name).write_text(text, encoding="utf-8")
    return destination


PIECES = st.lists(st.one_of(st.text(max_size=20), st.sampled_from([*ARPO_TAGS, *CONTROL_TOKENS]))).map("".join)


@given(text=PIECES)
def test_any_text_round_trips_through_a_byte_level_tokenizer(bpe: HfTokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.decode(bpe.encode_plain(text)) == text


@given(text=PIECES)
def test_plain_text_never_becomes_an_added_token(bpe: HfTokenizer, text: str) -> None:
    added = {bpe.encode(token)[0] for token in (*ARPO_TAGS, *CONTROL_TOKENS)}
    assert not added & set(bpe.encode_plain(text))


def test_tags_and_control_tokens_are_single_tokens(bpe: HfTokenizer, word: HfTokenizer) -> None:
    for tokenizer in (bpe, word):
        ids = [tokenizer.encode(token) for token in (*ARPO_TAGS, *CONTROL_TOKENS)]
        assert all(len(i) == 1 for i in ids)
        assert len({i[0] for i in ids}) == len(ARPO_TAGS) + len(CONTROL_TOKENS)
        assert tokenizer.special_token_ids == tuple(sorted(tokenizer.encode(t)[0] for t in CONTROL_TOKENS))
        assert max(i[0] for i in ids) == tokenizer.vocab_size - 1


def test_encode_adds_nothing_before_or_behind(bpe: HfTokenizer) -> None:
    assert bpe.encode("") == []
    assert bpe.encode("a") == bpe.encode("a<|im_end|>")[:-1]


LINES = st.lists(st.lists(st.sampled_from([*WORDS, *ARPO_TAGS]), max_size=5).map(" ".join), max_size=5).map("\n".join)


@given(lines=LINES)
def test_lines_of_words_round_trip_through_a_word_tokenizer(word: HfTokenizer, lines: str) -> None:
    chat = f"<|im_start|>user\n{lines}<|im_end|>\n<|im_start|>assistant\nwho<|endoftext|>"
    assert word.decode(word.encode(lines)) == lines
    assert word.decode(word.encode(chat)) == chat
    assert len(word.encode(lines)) == len(lines.split()) + lines.count("\n")


def test_word_tokens_put_together_are_the_tokens_of_the_joined_text(word: HfTokenizer) -> None:
    one, other = "who is <search> mother of anna </search>", "<result>\nanna ?\n</result>"
    assert word.encode(one) + word.encode(f" {other}") == word.encode(f"{one} {other}")
    assert word.encode("zebra") == [0]
    assert word.decode(word.encode("who  is \n ?")) == "who is\n?"


@pytest.mark.parametrize("words", [["a", "a"], [""], ["a b"], ["a\n"], ["<search>"], ["x<|im_end|>"]])
def test_word_tokenizer_refuses_what_would_not_round_trip(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ValueError, match="word"):
        make_word_tokenizer(tmp_path, words=words)


def test_byte_level_tokenizer_refuses_a_vocabulary_without_room_for_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size=268"):
        make_bpe_tokenizer(tmp_path, texts=TEXTS, vocab_size=268)
    make_bpe_tokenizer(tmp_path, texts=TEXTS, vocab_size=269)
    assert load_tokenizer(tmp_path).vocab_size == 269


def test_makers_write_the_same_bytes_in_another_process(bpe_folder: Path, tmp_path: Path) -> None:
    code = f"""if True:
        from engine.tokenizer_tiny import make_bpe_tokenizer
        make_bpe_tokenizer({str(tmp_path)!r}, texts={TEXTS!r}, vocab_size=320)"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={"PYTHONHASHSEED": "7"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        one, other = (hashlib.sha256((f / name).read_bytes()).hexdigest() for f in (bpe_folder, tmp_path))
        assert one == other


def test_ends_are_collected_from_template_and_configs_in_order(bpe_folder: Path, tmp_path: Path) -> None:
    bpe = load_tokenizer(bpe_folder)
    text_end, turn_end = bpe.encode("<|endoftext|><|im_end|>")
    assert bpe.eos_token_ids == (turn_end,)
    config = json.loads((bpe_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    base = copy_with(bpe_folder, tmp_path / "base", tokenizer_config_json=config | {"eos_token": "<|endoftext|>"})
    assert load_tokenizer(base).eos_token_ids == (turn_end, text_end)
    no_template = {"eos_token": {"content": "<|endoftext|>"}}
    files = {"tokenizer_config_json": no_template, "config_json": {"eos_token_id": 7}}
    several = copy_with(bpe_folder, tmp_path / "s", generation_config_json={"eos_token_id": [9, text_end]}, **files)
    assert load_tokenizer(several).eos_token_ids == (text_end, 9, 7)


def test_broken_folders_raise_one_line_that_names_the_file(bpe_folder: Path, tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, object], str]] = {
        "none": ({"tokenizer_json": None}, "tokenizer.json: No such file"),
        "torn": ({"tokenizer_json": "{"}, "tokenizer.json: .*truncated"),
        "foreign": ({"tokenizer_json": {"model": {}}}, "tokenizer.json: "),
        "endless": ({"tokenizer_config_json": {}}, "no eos token"),
        "words": ({"config_json": {"eos_token_id": "two"}}, "config.json: eos_token_id is 'two'"),
        "template": ({"chat_template_jinja": "{% if %}"}, "chat_template.jinja: chat template: TemplateSyntaxError"),
        "nameless": ({"tokenizer_config_json": {"chat_template": [{}]}}, "tokenizer_config.json: chat_template"),
    }
    for name, (files, message) in cases.items():
        folder = copy_with(bpe_folder, tmp_path / name, **files)
        with pytest.raises(DataError, match=message) as caught:
            load_tokenizer(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def test_special_token_that_text_can_spell_is_refused(bpe_folder: Path, tmp_path: Path) -> None:
    raw = json.loads((bpe_folder / "tokenizer.json").read_text(encoding="utf-8"))
    letter = raw["model"]["vocab"]["a"]
    raw["added_tokens"].append({**raw["added_tokens"][-1], "id": letter, "content": "a"})
    with pytest.raises(DataError, match="'a' is also a word"):
        load_tokenizer(copy_with(bpe_folder, tmp_path / "x", tokenizer_json=raw))


def test_text_that_is_not_unicode_raises_a_data_error(bpe: HfTokenizer) -> None:
    with pytest.raises(DataError, match="text to encode"):
        bpe.encode("\ud800")


def test_truncation_left_in_the_file_is_ignored(bpe_folder: Path, tmp_path: Path) -> None:
    raw = json.loads((bpe_folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    cut = load_tokenizer(copy_with(bpe_folder, tmp_path / "cut", tokenizer_json=raw))
    assert len(cut.encode("0123456789")) == 10


def test_template_renders_as_transformers_does(bpe_folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = copy_with(bpe_folder, tmp_path / "qwen", chat_template_jinja=TOOL_TEMPLATE)
    ours = load_tokenizer(folder)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(folder))
    function = {"name": "search", "description": SEARCH.description, "parameters": SEARCH.parameters}
    for messages in (CONVERSATION, CONVERSATION[1:2], CONVERSATION[:2]):
        for specs, tools in (((SEARCH,), [{"type": "function", "function": function}]), ((), None)):
            text = ours.apply_chat_template(messages, tools=specs)
            assert text == theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    text = ours.apply_chat_template(CONVERSATION, tools=(SEARCH,))
    assert "Looks <things> up & returns" in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_template_that_refuses_the_messages_raises_a_data_error(bpe_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(copy_with(bpe_folder, tmp_path / "q", chat_template_jinja=TOOL_TEMPLATE))
    with pytest.raises(DataError, match="no such role: judge"):
        tokenizer.apply_chat_template([*CONVERSATION, {"role": "judge", "content": ""}])


def test_template_cannot_leave_its_sandbox() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", special_tokens={}, source="t")
    with pytest.raises(DataError, match="SecurityError"):
        template.render([])


def test_named_templates_are_chosen_by_whether_there_are_tools(bpe_folder: Path, tmp_path: Path) -> None:
    entries = [
        {"name": "default", "template": "{{ eos_token }}"},
        {"name": "tool_use", "template": "{{ tools|length }}"},
    ]
    config = {"eos_token": "<|im_end|>", "chat_template": entries}
    tokenizer = load_tokenizer(copy_with(bpe_folder, tmp_path / "named", tokenizer_config_json=config))
    assert tokenizer.apply_chat_template([]) == "<|im_end|>"
    assert tokenizer.apply_chat_template([], tools=(SEARCH,)) == "1"


def test_folder_without_a_template_gets_a_plain_one(bpe_folder: Path, tmp_path: Path) -> None:
    config = {"eos_token": "<|endoftext|>"}
    tokenizer = load_tokenizer(copy_with(bpe_folder, tmp_path / "plain", tokenizer_config_json=config))
    messages = [{"role": "user", "content": "1 + 1?"}]
    assert tokenizer.apply_chat_template(messages) == "user: 1 + 1?\n\nassistant:"
    assert tokenizer.apply_chat_template(messages, tools=(SEARCH,)).startswith('tools: [{"type": "function"')


def test_importing_the_tokenizer_loads_no_heavy_library() -> None:
    code = """if True:
        import sys
        import engine.dataset, engine.renderer, engine.tokenizer, engine.tokenizer_tiny
        print([n for n in ("tokenizers", "jinja2", "pyarrow", "torch", "transformers") if n in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
