"""Traces: what a policy would have sampled is trained, what the world said is not, and a bad line is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.renderer import RendererConfig, make_renderer
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.traces import Segment, Trace, read_traces, tokenise

PROMPT = [{"role": "user", "content": "who"}]
WORDS = ["who", "is", "one", "two"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    folder = tmp_path_factory.mktemp("words")
    make_word_tokenizer(folder, words=WORDS)
    return load_tokenizer(folder)


@given(parts=st.lists(st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), st.booleans()), max_size=6))
def test_exactly_the_sampled_segments_and_the_end_of_a_sampled_one_are_trained(
    tokenizer: HfTokenizer, parts: list[tuple[list[str], bool]]
) -> None:
    renderer = make_renderer(RendererConfig(), tokenizer=tokenizer, specs=[])
    segments = [Segment(text=" ".join(words), is_sampled=is_sampled) for words, is_sampled in parts]
    ids, mask = tokenise(Trace(prompt=PROMPT, segments=segments), tokenizer=tokenizer, renderer=renderer)
    head = renderer.render_prompt(PROMPT)
    assert ids.dtype == np.int32
    assert mask.dtype == np.bool_
    assert ids.size == mask.size
    assert np.array_equal(ids[: head.size], head)
    assert not mask[: head.size].any()
    expected_ids: list[int] = []
    expected_mask: list[bool] = []
    for segment in segments:
        piece = tokenizer.encode(segment.text)
        expected_ids += piece
        expected_mask += [segment.is_sampled] * len(piece)
    is_end_trained = bool(segments) and segments[-1].is_sampled
    assert ids[head.size :].tolist() == [*expected_ids, tokenizer.eos_token_ids[0]]
    assert mask[head.size :].tolist() == [*expected_mask, is_end_trained]


def test_segments_never_share_a_token(tokenizer: HfTokenizer) -> None:
    renderer = make_renderer(RendererConfig(), tokenizer=tokenizer, specs=[])
    whole = Trace(prompt=PROMPT, segments=[Segment(text="one two", is_sampled=True)])
    split = Trace(
        prompt=PROMPT, segments=[Segment(text="one", is_sampled=True), Segment(text=" two", is_sampled=False)]
    )
    assert tokenise(whole, tokenizer=tokenizer, renderer=renderer)[1].sum() == 3
    assert tokenise(split, tokenizer=tokenizer, renderer=renderer)[1].sum() == 1


def test_a_file_is_read_line_by_line_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    line = json.dumps({"prompt": PROMPT, "segments": [{"text": "one", "is_sampled": True}], "is_correct": False})
    (tmp_path / "t.jsonl").write_text(f"{line}\n\n  \n{line}\n")
    traces = list(read_traces(tmp_path / "t.jsonl"))
    assert [(t.prompt, t.segments[0].text, t.is_correct) for t in traces] == [(PROMPT, "one", False)] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Input data was truncated"),
        ('{"prompt": []}', "missing required field `segments`"),
        ('{"prompt": 1, "segments": []}', r"Expected `array`, got `int` - at `\$.prompt`"),
        ('{"prompt": [], "segments": [{"text": "x"}]}', r"missing required field `is_sampled` - at `\$.segments\[0\]`"),
    ],
)
def test_a_line_that_is_no_trace_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": [], "segments": []}\n\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(read_traces(path))
    assert str(caught.value).startswith(f"{path}: line 3: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: No such file or directory"):
        list(read_traces(tmp_path / "none.jsonl"))
