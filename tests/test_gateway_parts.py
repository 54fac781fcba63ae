"""Parts of the gateway that sockets would test slowly: visible text, tokens behind a turn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.gateway.dialogue import UNANSWERED, Dialogue
from actors.gateway.said import CallSaid, Message, TurnAsked, extended
from actors.gateway.text_stream import TextStream
from engine.renderer import RendererConfig
from engine.tokenizer import HfTokenizer
from engine.types import ToolCall, ToolSpec
from tests.gateway_world import make_tokenizer

SPEC = ToolSpec(name="add", description="Add.", parameters={"type": "object", "properties": {}})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("model"))


def shown(tokenizer: HfTokenizer, text: str, sizes: list[int], *, has_calls: bool = False, **marks: list[str]) -> str:
    """What a client sees of a text that is sampled in pieces of so many tokens."""
    stream = TextStream(tokenizer.decode, **marks)
    ids, pieces, place = tokenizer.encode(text), "", 0
    for size in [*sizes, len(ids)]:
        pieces += stream.add(ids[place : place + size])
        place += size
    return pieces + stream.end(has_calls=has_calls)


WORDS = ["a", " ", "é", "\N{BEER MUG}", "<", "tool", "\n", "sto", "the sum "]


@given(
    st.lists(st.sampled_from(WORDS), max_size=120).map("".join).filter(lambda t: "stop" not in t and "<tool" not in t),
    st.lists(st.integers(1, 5), max_size=200),
)
def test_whatever_the_pieces_the_text_is_whole(tokenizer: HfTokenizer, text: str, sizes: list[int]) -> None:
    assert shown(tokenizer, text, sizes, stops=["stop"], openings=["<tool"]) == text


@given(st.lists(st.integers(1, 3), max_size=40))
def test_stop_strings_and_calls_are_held_back_however_they_are_cut(tokenizer: HfTokenizer, sizes: list[int]) -> None:
    text = "so <tool>x</tool> and stop here"
    assert shown(tokenizer, text, sizes, stops=["stop"]) == "so <tool>x</tool> and "
    assert shown(tokenizer, text, sizes, openings=["<tool>"], has_calls=True) == "so "
    # What looked like a call and was none is text after all.
    assert shown(tokenizer, text, sizes, openings=["<tool>"]) == text
    assert shown(tokenizer, text, sizes, openings=["<tool>"], stops=["stop"]) == "so <tool>x</tool> and "


def test_what_is_said_behind_a_turn_is_what_the_template_would_have_put_there(tokenizer: HfTokenizer) -> None:
    dialogue = Dialogue(tokenizer, RendererConfig(format="hermes"), ())
    history = [Message(role="user", content="one"), Message(role="assistant", content="two")]
    new = [Message(role="user", content="three")]
    opening, whole = dialogue.opening(history[:1]), dialogue.opening([*history, *new])
    for end in ("<|im_end|>", ""):
        segment = np.array(tokenizer.encode(f"two{end}"), np.int32)
        joined = np.concatenate([opening, segment, dialogue.behind(new, segment=segment, results=[])])
        assert joined.tolist() == whole.tolist()


def test_results_come_in_the_order_of_the_calls_and_the_missing_ones_are_said(tokenizer: HfTokenizer) -> None:
    dialogue = Dialogue(tokenizer, RendererConfig(format="hermes"), [SPEC])
    calls = [
        ToolCall(name="add", arguments={}),
        ToolCall(name="add", arguments={}, malformed="no JSON"),
        ToolCall(name="add", arguments={}),
        ToolCall(name="add", arguments={}),
    ]
    said = [
        Message(role="tool", content="second", call_id="b", is_error=True),
        Message(role="tool", content="first", call_id="a"),
    ]
    results = dialogue.results(said, calls=calls, call_ids=["a", "", "b", "c"])
    assert [(result.text, result.status) for result in results] == [
        ("first", "ok"),
        ("no JSON", "malformed"),
        ("second", "error"),
        (UNANSWERED, "refused"),
    ]


def test_equal_histories_have_equal_digests_and_others_have_not() -> None:
    call = CallSaid(id="c", name="add", arguments='{"a": 1, "b": 2}')
    answer = Message(role="assistant", content=" x ", calls=(call,))
    respelled = Message(role="assistant", content="x", calls=(CallSaid(id="c", name="add", arguments='{"b":2,"a":1}'),))
    assert extended(b"", answer) == extended(b"", respelled)
    for other in (Message(role="assistant", content="y", calls=(call,)), Message(role="assistant", content="x")):
        assert extended(b"", answer) != extended(b"", other)
    asked = [TurnAsked(messages=(Message(role="user", content=text),)).prefixes for text in ("x", " x")]
    assert asked[0] != asked[1]
    assert TurnAsked(messages=(answer,), tools=(SPEC,)).prefixes != TurnAsked(messages=(answer,)).prefixes


def test_histories_of_others_are_text_of_the_dialect(tokenizer: HfTokenizer) -> None:
    call = CallSaid(id="c", name="add", arguments='{"a":1}')
    history = [
        Message(role="user", content="x"),
        Message(role="assistant", calls=(call,)),
        Message(role="tool", content="3", call_id="c"),
    ]
    text = tokenizer.decode(Dialogue(tokenizer, RendererConfig(format="hermes"), [SPEC]).opening(history).tolist())
    assert '<tool_call>\n{"name": "add", "arguments": {"a":1}}\n</tool_call>' in text
    assert "<tool_response>\n3\n</tool_response>" in text
