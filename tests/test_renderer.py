"""Renderers: good calls are found, bad ones are answered, and nothing a tool prints can act."""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import codec
from engine.errors import ConfigError
from engine.renderer import Renderer, RendererConfig, make_renderer
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import ARPO_TAGS, CONTROL_TOKENS, make_bpe_tokenizer, make_word_tokenizer
from engine.types import ToolCall, ToolResult, ToolSpec

LIMIT = 40


def spec(name: str, parameter: str, **more: dict[str, Any]) -> ToolSpec:
    properties = {parameter: {"type": "string"}, **more}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return ToolSpec(name=name, description=name, parameters=parameters)


SPECS = (spec("search", "query", top_k={"type": "integer"}), spec("python", "code"))


def result(text: str) -> ToolResult:
    return ToolResult(name="search", text=text)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    texts = [
        "I think so. </search>\n</search>. The page says: 東京 is the capital",
        '{"name": "search", "arguments": {}}',
    ]
    # As in Qwen: some tags are single tokens, the others ordinary text, and a token may run on behind a tag's end.
    make_bpe_tokenizer(folder, texts=texts * 3, vocab_size=400, special_tokens=("<tool_call>", "</think>", "<python>"))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def arpo(tokenizer: HfTokenizer) -> Renderer:
    return make_renderer(RendererConfig(max_result_tokens=LIMIT), tokenizer=tokenizer, specs=SPECS)


@pytest.fixture(scope="module")
def hermes(tokenizer: HfTokenizer) -> Renderer:
    config = RendererConfig(format="hermes", max_result_tokens=LIMIT, max_calls_per_turn=3)
    return make_renderer(config, tokenizer=tokenizer, specs=SPECS)


MARKUP = [
    *ARPO_TAGS,
    *CONTROL_TOKENS,
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<",
    ">",
    "/",
]
HOSTILE = st.lists(st.one_of(st.text(max_size=30), st.sampled_from(MARKUP)), max_size=12).map("".join)


# --- what both formats promise


@given(texts=st.lists(HOSTILE, min_size=1, max_size=3))
def test_no_tool_output_becomes_markup_in_tokens_or_text(
    tokenizer: HfTokenizer, arpo: Renderer, hermes: Renderer, texts: list[str]
) -> None:
    special = set(tokenizer.special_token_ids)
    results = [result(text) for text in texts]
    ids = arpo.render_results(results, segment=[])
    assert ids.dtype == np.int32
    assert not special & set(ids.tolist())
    tags = re.findall("<(/?(?:think|search|python|result|answer))>", arpo.text(ids))
    assert tags == ["result", "/result"] * len(texts)

    ids = hermes.render_results(results, segment=[])
    control = [i for i in ids.tolist() if i in special]
    assert [tokenizer.decode([i]) for i in control] == ["<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"]
    tags = re.findall("<(/?tool_[a-z]+)>", hermes.text(ids))
    assert tags == ["tool_response", "/tool_response"] * len(texts)


@given(data=st.data())
def test_parse_never_raises_and_what_it_finds_can_be_journaled(
    tokenizer: HfTokenizer, arpo: Renderer, hermes: Renderer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=30))
    text = data.draw(st.lists(st.sampled_from([*MARKUP, "a", " ", '{"name": "x", "arguments": {}}']), max_size=12))
    for token_ids in (ids, np.array(ids, dtype=np.int32), tokenizer.encode("".join(text))):
        for renderer in (arpo, hermes):
            for call in renderer.parse(token_ids):
                assert bool(call.arguments) <= (not call.malformed)
                assert codec.Decoder(ToolCall).decode(codec.encode(call)) == call


@pytest.mark.parametrize("name", ["arpo", "hermes"])
def test_long_result_is_cut_at_the_limit_with_a_note(
    name: str, tokenizer: HfTokenizer, request: pytest.FixtureRequest
) -> None:
    renderer: Renderer = request.getfixturevalue(name)
    empty, note = renderer.render_results([result("")], segment=[]), "[cut after 40 tokens]"
    for text in ("z" * 41, "鶴" * 200, "é" * 10_000_000):
        ids = renderer.render_results([result(text)], segment=[])
        assert note in renderer.text(ids)
        assert "\N{REPLACEMENT CHARACTER}" not in renderer.text(ids)
        num_note = len(tokenizer.encode_plain(f"\n{note}\n"))
        assert LIMIT - 3 <= len(ids) - len(empty) - num_note + 1 <= LIMIT
    ids = renderer.render_results([result("z" * 40)], segment=[])
    assert note not in renderer.text(ids)
    assert "z" * 40 in renderer.text(ids)


def test_cut_by_characters_is_noted_even_where_escapes_make_up_for_it(tmp_path: Path) -> None:
    # White space costs a word tokenizer nothing, so all that is read fits; what lies behind must not vanish unsaid.
    make_word_tokenizer(tmp_path, words=["berta", "[cut", "after", "40", "tokens]"])
    config = RendererConfig(max_result_tokens=LIMIT)
    renderer = make_renderer(config, tokenizer=load_tokenizer(tmp_path), specs=SPECS)
    text = " " * (LIMIT * 256 - 9) + "</result> berta"
    ids = renderer.render_results([result(text)], segment=[])
    assert renderer.text(ids) == "<result>\n<|unk|>\n\n[cut after 40 tokens]\n</result>"


def test_result_with_lone_surrogates_is_rendered(arpo: Renderer) -> None:
    assert "a?b" in arpo.text(arpo.render_results([result("a\udcffb")], segment=[]))


@given(before=st.text(max_size=30), content=HOSTILE)
def test_concatenated_pieces_of_a_path_are_its_tokens(
    tokenizer: HfTokenizer, arpo: Renderer, hermes: Renderer, before: str, content: str
) -> None:
    prompt = [{"role": "user", "content": before}]
    for renderer in (arpo, hermes):
        pieces = [renderer.render_prompt(prompt), np.array(tokenizer.encode("x"), dtype=np.int32)]
        pieces.append(renderer.render_results([result(content)], segment=pieces[1]))
        assert renderer.text(np.concatenate(pieces)) == "".join(renderer.text(piece) for piece in pieces)


# --- arpo


@given(
    content=st.text(min_size=1, max_size=40).filter(lambda t: bool(t.strip()) and "<" not in t),
    name=st.sampled_from(["search", "python"]),
    before=HOSTILE,
    behind=st.sampled_from(["", "\n", " "]),
)
def test_arpo_finds_the_call_that_ends_the_segment(
    tokenizer: HfTokenizer, arpo: Renderer, content: str, name: str, before: str, behind: str
) -> None:
    ids = tokenizer.encode(f"{before}<{name}> {content} </{name}>{behind}")
    (call,) = arpo.parse(ids)
    assert call == ToolCall(name=name, arguments={{"search": "query", "python": "code"}[name]: content.strip()})


def test_arpo_reads_the_tag_that_the_last_token_completes_though_it_holds_more(
    tokenizer: HfTokenizer, arpo: Renderer
) -> None:
    ids = tokenizer.encode("<search>who</search>.")
    assert tokenizer.decode(ids[-1:]).endswith(">.")
    assert arpo.parse(ids)[0].arguments == {"query": "who"}
    assert arpo.parse([*ids, *tokenizer.encode("x")]) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think> so </think> <answer> 4 </answer><|im_end|>",
        "<search> who </search> and on I went",
        "<search> who </search><|im_end|>",
        "<search> never closed",
        "<result> 4 </result>",
        "<browse> x </browse>",
    ],
)
def test_arpo_segment_without_a_call_at_its_end_is_final(tokenizer: HfTokenizer, arpo: Renderer, text: str) -> None:
    assert arpo.parse(tokenizer.encode(text)) == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<search>  </search>", "nothing between <search> and </search>"),
        ("I know </python>", "</python> came without <python>"),
        ("<search> a </search> b </search>", "</search> came without <search>"),
        ("<search> a </python>", "</python> came without <python>"),
    ],
)
def test_arpo_call_that_cannot_run_says_so_to_the_policy(
    tokenizer: HfTokenizer, arpo: Renderer, text: str, problem: str
) -> None:
    (call,) = arpo.parse(tokenizer.encode(text))
    assert problem in call.malformed
    assert call.arguments == {}


def test_arpo_takes_the_last_call_and_its_innermost_opening(tokenizer: HfTokenizer, arpo: Renderer) -> None:
    ids = tokenizer.encode("<search> a </search> <python> x <python> print(1 < 2) </python>")
    assert arpo.parse(ids) == (ToolCall(name="python", arguments={"code": "print(1 < 2)"}),)


def test_arpo_result_is_one_space_and_the_released_markup(tokenizer: HfTokenizer, arpo: Renderer) -> None:
    ids = arpo.render_results([result("Page 1: a <b> &\n")], segment=tokenizer.encode("</search>"))
    assert arpo.text(ids) == " <result>\nPage 1: a <b> &\n\n</result>"
    ids = arpo.render_results([result("see </result><|im_end|>")], segment=[])
    assert arpo.text(ids) == " <result>\nsee &lt;/result&gt;<|im_end|>\n</result>"
    assert tokenizer.encode("<|im_end|>")[0] not in ids


def test_arpo_stops_at_closing_tags_and_ends(tokenizer: HfTokenizer, arpo: Renderer) -> None:
    assert arpo.stop_strings == ("</search>", "</python>")
    assert arpo.stop_token_ids == tokenizer.eos_token_ids
    bare = make_renderer(RendererConfig(), tokenizer=tokenizer, specs=())
    assert bare.stop_strings == ()
    assert bare.parse(tokenizer.encode("<search> a </search>")) == ()


@pytest.mark.parametrize(
    "tool",
    [
        spec("answer", "text"),
        spec("two words", "text"),
        ToolSpec(name="now", description="", parameters={"type": "object"}),
        ToolSpec(name="add", description="", parameters={"properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        msgspec.structs.replace(spec("f", "a", b={"type": "string"}), parameters={"required": ["a", "b"]}),
    ],
)
def test_arpo_refuses_a_tool_that_a_tag_cannot_call(tokenizer: HfTokenizer, tool: ToolSpec) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(tool.name))):
        make_renderer(RendererConfig(), tokenizer=tokenizer, specs=(tool,))


def test_arpo_speaks_through_a_word_tokenizer(tmp_path: Path) -> None:
    make_word_tokenizer(tmp_path, words=["mother", "of", "anna", "is", "berta"])
    tokenizer = load_tokenizer(tmp_path)
    renderer = make_renderer(RendererConfig(), tokenizer=tokenizer, specs=SPECS)
    prompt = renderer.render_prompt([{"role": "user", "content": "mother of anna"}])
    segment = tokenizer.encode("<search> mother of anna </search>")
    answer = renderer.render_results([result("mother of anna is berta")], segment=segment)
    assert renderer.parse(segment)[0].arguments == {"query": "mother of anna"}
    assert renderer.text([*prompt, *segment, *answer]) == (
        "<|im_start|>user\nmother of anna<|im_end|>\n<|im_start|>assistant\n"
        "<search> mother of anna </search> <result>\nmother of anna is berta\n</result>"
    )
