"""Tokenizers: what goes in comes out, data cannot become control, torn folders are named."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import ARPO_TAGS, CONTROL_TOKENS, make_bpe_tokenizer, make_word_tokenizer

TEXTS = ["Who wrote the book? The author wrote it in 1926.", "print(2 + 2)\nprint('four')", "née Müller, 東京"]
WORDS = ["anna", "mother", "of", "who", "is", "?", "1987", "+", "print"]


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


def test_encode_adds_nothing_before_or_behind(bpe: HfTokenizer, bpe_folder: Path, tmp_path: Path) -> None:
    start = bpe.encode("<|im_start|>")[0]
    raw = json.loads((bpe_folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [start], "tokens": ["<|im_start|>"]}},
    }
    adding = load_tokenizer(copy_with(bpe_folder, tmp_path / "adding", tokenizer_json=raw))
    for tokenizer in (bpe, adding):
        assert tokenizer.encode("") == tokenizer.encode_plain("") == []
        assert start not in tokenizer.encode("a") + tokenizer.encode_plain("a")


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


def test_unknown_token_may_come_out_of_plain_text(tmp_path: Path) -> None:
    make_word_tokenizer(tmp_path / "w", words=WORDS)
    raw = json.loads((tmp_path / "w" / "tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"].insert(0, {**raw["added_tokens"][-1], "id": 0, "content": "<|unk|>"})
    tokenizer = load_tokenizer(copy_with(tmp_path / "w", tmp_path / "unk", tokenizer_json=raw))
    assert tokenizer.encode_plain("<|unk|> zebra") == [0, 0]


def test_text_that_is_not_unicode_raises_a_data_error(bpe: HfTokenizer) -> None:
    with pytest.raises(DataError, match="text to encode"):
        bpe.encode("\ud800")


def test_truncation_left_in_the_file_is_ignored(bpe_folder: Path, tmp_path: Path) -> None:
    raw = json.loads((bpe_folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    cut = load_tokenizer(copy_with(bpe_folder, tmp_path / "cut", tokenizer_json=raw))
    assert len(cut.encode("0123456789")) == 10


def test_importing_the_tokenizer_loads_no_heavy_library() -> None:
    code = """if True:
        import sys
        import engine.dataset, engine.renderer, engine.tokenizer, engine.tokenizer_tiny
        print([n for n in ("tokenizers", "jinja2", "pyarrow", "torch", "transformers") if n in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
