"""Data sets: every row in its place, torn ones mended, bad ones named."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import config as configuration
from engine.answers import alternatives, join_alternatives
from engine.dataset import DataConfig, PromptDataset
from engine.errors import ConfigError, DataError
from engine.types import Int32, Prompt


class CharacterRenderer:
    """One token a character of the messages' contents; counts what it rendered."""

    def __init__(self) -> None:
        self.num_rendered = 0

    def render_prompt(self, messages: Sequence[dict[str, str]]) -> Int32:
        self.num_rendered += 1
        return np.array([ord(c) for m in messages for c in f"{m['role'][0]}:{m['content']}|"], dtype=np.int32)


def record(
    question: str = "1 + 1?", answer: Any = "2", *, system: str = "Think.", source: str = "sums"
) -> dict[str, Any]:
    messages = [{"content": system, "role": "system"}, {"content": question, "role": "user"}]
    extra = {"index": 0, "question": question, "split": "train"}
    return {
        "data_source": source,
        "prompt": messages,
        "ability": None,
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": extra,
    }


def write(path: Path, records: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def numbered(path: Path, count: int) -> str:
    return write(path, [record(f"{i} + 0?", str(i)) for i in range(count)])


def read(path: str, renderer: CharacterRenderer | None = None, **settings: Any) -> PromptDataset:
    config = configuration.decode({"path": path, **settings}, DataConfig, source="test")
    return PromptDataset(config, renderer=renderer or CharacterRenderer())


def ids(prompts: Any) -> list[str]:
    return [prompt.prompt_id for prompt in prompts]


def text(prompt: Prompt) -> str:
    return "".join(map(chr, prompt.token_ids))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_row_becomes_a_prompt(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", [record("who?", " Anna "), record("1 + 1?", "2", source="other")])
    prompts = list(read(path, order="file").prompts())
    assert ids(prompts) == ["e0-r0", "e0-r1"]
    first = prompts[0]
    assert (first.epoch, first.row, first.question, first.ground_truth, first.data_source) == (
        0,
        0,
        "who?",
        "Anna",
        "sums",
    )
    assert text(first) == "s:Think.|u:who?|"
    assert prompts[1].data_source == "other"


def test_torn_boxed_is_mended_with_one_warning_that_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torn = record("who? \x08oxed", system="Use \x08oxed{} or \x08oxed{x}; \x08 stays.")
    path = write(tmp_path / "torn.parquet", [torn, record(), torn, record("", "")])
    with caplog.at_level(logging.WARNING):
        data = read(path, order="file")
        prompts = list(data.prompts())
    assert text(prompts[0]) == "s:Use \\boxed{} or \\boxed{x}; \x08 stays.|u:who? \\boxed|"
    assert prompts[0].question == "who? \\boxed"
    (line,) = (message for message in caplog.messages if "backspace" in message)
    assert line == f"{path}: 2 rows held a backspace where \\boxed was meant; mended on reading"
    assert data.statistics.num_mended == 2


def test_rows_without_an_answer_are_left_out_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [record(answer=answer) for answer in ("  ", "2", None, "3", "")]
    path = write(tmp_path / "blank.parquet", records)
    with caplog.at_level(logging.INFO):
        data = read(path, order="file", epochs=2)
        prompts = list(data.prompts())
    assert ids(prompts) == ["e0-r1", "e0-r3", "e1-r1", "e1-r3"]
    assert caplog.messages == [f"{path}: 3 rows without an answer are left out"]
    counts = data.statistics
    assert (counts.num_rows, counts.num_without_answer, counts.num_used, counts.num_overlong) == (5, 3, 2, 0)


def test_file_without_any_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 2 rows has an answer"):
        read(write(tmp_path / "blank.jsonl", [record(answer=" ")] * 2))


def test_limit_counts_usable_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [record(answer=a) for a in ("", "1", "2", "3")])
    assert ids(read(path, order="file", limit=2).prompts()) == ["e0-r1", "e0-r2"]
    assert ids(read(path, order="file", limit=9).prompts()) == ["e0-r1", "e0-r2", "e0-r3"]


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.parquet", 20)
    prompts = list(read(path, epochs=3).prompts())
    orders = [[p.row for p in prompts if p.epoch == epoch] for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert [p.epoch for p in prompts] == [0] * 20 + [1] * 20 + [2] * 20
    assert orders[0] != orders[1] != orders[2] != list(range(20))
    assert ids(read(path, epochs=3).prompts()) == ids(prompts)
    assert ids(read(path, epochs=3, shuffle_seed=1).prompts()) != ids(prompts)


def test_order_is_the_same_in_every_release(tmp_path: Path) -> None:
    # A resumed run must meet the order it began with, so the order is part of the format.
    prompts = read(numbered(tmp_path / "a.jsonl", 8), epochs=2).prompts()
    assert [p.row for p in prompts] == [2, 3, 4, 1, 5, 0, 6, 7, 7, 2, 0, 6, 1, 3, 5, 4]


@given(start=st.integers(0, 21), seed=st.integers(0, 3))
def test_prompts_go_on_from_any_position(tmp_path_factory: pytest.TempPathFactory, start: int, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "seven.parquet"
    data = read(str(path) if path.exists() else numbered(path, 7), epochs=3, shuffle_seed=seed)
    everything = list(data.prompts())
    assert len(data) == len(everything) == 21
    rest = list(data.prompts(start=start))
    assert ids(rest) == ids(everything[start:])
    assert [data.position_of(prompt) for prompt in rest] == list(range(start, 21))


def test_position_outside_the_data_is_refused(tmp_path: Path) -> None:
    data = read(numbered(tmp_path / "a.parquet", 3))
    for start in (-1, 4):
        with pytest.raises(ValueError, match=f"start={start}"):
            next(data.prompts(start=start))
    assert list(data.prompts(start=3)) == []
    stranger = msgspec.structs.replace(next(data.prompts()), row=7, prompt_id="e0-r7")
    with pytest.raises(DataError, match="e0-r7 is not a prompt"):
        data.position_of(stranger)


def test_prompts_are_tokenised_only_when_taken(tmp_path: Path) -> None:
    renderer = CharacterRenderer()
    prompts = read(numbered(tmp_path / "a.parquet", 9), renderer).prompts()
    assert renderer.num_rendered == 0
    next(prompts)
    next(prompts)
    assert renderer.num_rendered == 2


def test_overlong_prompt_is_an_error_or_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [record("short"), record("x" * 50), record("exact" + "x" * 11)])
    with pytest.raises(DataError, match="row 1: 62 tokens, max_prompt_tokens is 28"):
        list(read(path, order="file", max_prompt_tokens=28).prompts())
    data = read(path, order="file", max_prompt_tokens=28, overlong="skip", epochs=2)
    assert data.statistics.num_overlong == 0
    prompts = list(data.prompts())
    assert ids(prompts) == ["e0-r0", "e0-r2", "e1-r0", "e1-r2"]
    assert data.statistics.num_overlong == 1
    assert [data.position_of(prompt) for prompt in prompts] == [0, 2, 3, 5]


def test_system_prompt_replaces_that_of_every_row(tmp_path: Path) -> None:
    bare = {**record("b"), "prompt": [{"role": "user", "content": "b"}]}
    path = write(tmp_path / "a.jsonl", [record("a"), bare])
    assert [text(p) for p in read(path, order="file", system_prompt="S").prompts()] == ["s:S|u:a|", "s:S|u:b|"]
    assert [text(p) for p in read(path, order="file").prompts()] == ["s:Think.|u:a|", "u:b|"]


def test_plain_questions_with_alternatives_are_read_from_named_columns(tmp_path: Path) -> None:
    rows = [{"q": "where?", "a": ["NYC", " ", "New York"]}, {"q": "1+1?", "a": 2}, {"q": "?", "a": []}]
    path = write(tmp_path / "qa.jsonl", rows)
    prompts = list(read(path, order="file", prompt_column="q", answer_column="a").prompts())
    assert [p.ground_truth for p in prompts] == ['["NYC", "New York"]', "2"]
    assert alternatives(prompts[0].ground_truth) == ("NYC", "New York")
    assert [p.data_source for p in prompts] == ["qa", "qa"]
    assert text(prompts[1]) == "u:1+1?|"


def test_question_is_the_last_message_of_the_user(tmp_path: Path) -> None:
    turns = [("user", "first?"), ("assistant", "so"), ("user", "second?"), ("assistant", "then")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (prompt,) = read(write(tmp_path / "a.jsonl", [{**record(), "prompt": messages}])).prompts()
    assert prompt.question == "second?"


@pytest.mark.parametrize("answer", ["[]", "[1, 2]", "[", "", '["a", 1]', "[4,\\infty)"])
def test_answer_that_is_no_array_of_strings_is_one_answer(answer: str) -> None:
    assert alternatives(answer) == (answer,)


@given(
    answers=st.lists(st.one_of(st.text(), st.sampled_from(['["a"]', "[]", "[1, 2]", '["a", "b"]', "["])), min_size=1)
)
def test_alternatives_round_trip(answers: list[str]) -> None:
    assert alternatives(join_alternatives(answers)) == tuple(answers)


def test_missing_columns_are_named_with_those_present(tmp_path: Path) -> None:
    nested = record()
    del nested["reward_model"]["ground_truth"], nested["prompt"]
    there = "data_source, ability, reward_model.style, extra_info.index, extra_info.question, extra_info.split"
    path = write(tmp_path / "a.parquet", [nested])
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: no column prompt, reward_model.ground_truth; there are: {there}"
    path = write(tmp_path / "a.jsonl", [record(), nested])
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: line 2: no column prompt, reward_model.ground_truth; there are: {there}"


def test_unusable_files_raise_one_line_that_names_them(tmp_path: Path) -> None:
    torn, csv, line, shape = (tmp_path / name for name in ("torn.parquet", "a.csv", "line.jsonl", "shape.jsonl"))
    torn.write_bytes(b"PAR1 nothing")
    csv.write_text("a,b", encoding="utf-8")
    line.write_text(json.dumps(record()) + "\n\n{\n", encoding="utf-8")
    write(shape, [record(), {**record(), "prompt": [{"role": "user"}]}])
    answer = write(tmp_path / "answer.jsonl", [{**record(), "reward_model": {"ground_truth": [{"a": 1}]}}])
    empty = write(tmp_path / "empty.jsonl", [{**record(), "prompt": []}])
    cases = {
        str(torn): "ArrowInvalid",
        str(tmp_path / "none.parquet"): "no such data file",
        str(tmp_path / "none.jsonl"): "no such data file",
        str(csv): "ends in .parquet or .jsonl",
        str(line): "line 3: Input data was truncated",
        str(shape): "row 1: Object missing required field `content`",
        answer: "row 0: Expected",
        empty: "row 0: a prompt needs one message",
    }
    for path, message in cases.items():
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_configuration_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"\$\.overlong"):
        configuration.decode({"path": "a", "overlong": "cut"}, DataConfig, source="test")
    with pytest.raises(ConfigError, match=r"\$\.epochs"):
        configuration.decode({"path": "a", "epochs": 0}, DataConfig, source="test")
