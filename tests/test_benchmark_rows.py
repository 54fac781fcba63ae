"""Benchmark files: every known layout is read for what it is, whatever its columns are called; all rows are made up."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.answers import alternatives
from engine.dataset_files import ANSWER_COLUMN, PROMPT_COLUMN, Row, read_rows
from engine.errors import DataError

MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2 + 2?"}]
LAYOUTS: dict[str, tuple[dict[str, Any], str, tuple[str, ...], str, str]] = {
    "training": (
        {
            "prompt": MESSAGES,
            "ability": "math",
            "reward_model": {"ground_truth": "4", "style": "rule"},
            "extra_info": {"index": 0, "question": "2 + 2?"},
        },
        "2 + 2?",
        ("4",),
        "math",
        "",
    ),
    "wiki": (
        {"question": "Who wrote it?", "answer": ["Ann Lee", "A. Lee"]},
        "Who wrote it?",
        ("Ann Lee", "A. Lee"),
        "",
        "",
    ),
    "math500": ({"question": "Half of one?", "answer": "\\frac{1}{2}"}, "Half of one?", ("\\frac{1}{2}",), "", ""),
    "aime24": (
        {"id": 7, "problem": "P", "solution": "So 033.", "answer": "033", "url": "u", "question": "Find n."},
        "Find n.",
        ("033",),
        "",
        "",
    ),
    "aime25": ({"question": "Find m.", "answer": 70}, "Find m.", ("70",), "", ""),
    "problem": ({"problem": "Find k.", "answer": "5", "level": "Level 3"}, "Find k.", ("5",), "", "Level 3"),
    "gsm8k": (
        {"question": "Eggs?", "answer": "3 + 4 = <<3+4=7>>7\n7 a day.\n#### 1,007", "idx": 0},
        "Eggs?",
        ("1,007",),
        "",
        "",
    ),
    "gaia": ({"Question": "How many?", "answer": "17", "Level": 2}, "How many?", ("17",), "", "2"),
    "gaia-hub": ({"Question": "How many?", "Final answer": "17", "Level": "1"}, "How many?", ("17",), "", "1"),
    "webwalker": (
        {"question": "Which page?", "answer": "The last", "info": {"difficulty_level": "hard", "type": "x"}},
        "Which page?",
        ("The last",),
        "",
        "hard",
    ),
    "hle": (
        {"question": "Which law?", "answer": "D", "answer_type": "multipleChoice", "category": "Physics"},
        "Which law?",
        ("D",),
        "",
        "Physics",
    ),
    "options-list": (
        {"question": "Which?", "options": ["red", "blue"], "answer": 1},
        "Which?\nA. red\nB. blue",
        ("B", "blue"),
        "",
        "",
    ),
    "options-letter": (
        {"question": "Which?", "choices": ["red", "blue"], "answer": "A"},
        "Which?\nA. red\nB. blue",
        ("A", "red"),
        "",
        "",
    ),
    "options-table": (
        {"question": "Which?", "options": {"A": "red", "B": "blue"}, "answer": "blue"},
        "Which?\nA. red\nB. blue",
        ("B", "blue"),
        "",
        "",
    ),
    "xbench": ({"id": "1", "prompt": "Which year?", "answer": "1999"}, "Which year?", ("1999",), "", ""),
}


def write(path: Path, *records: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path: Path, *, prompt: str = PROMPT_COLUMN, answer: str = ANSWER_COLUMN) -> list[Row]:
    return list(read_rows(path, prompt=prompt, answer=answer, source="data_source"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_for_what_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    record, question, truths, ability, level = LAYOUTS[name]
    (row,) = read(write(tmp_path / f"{name}.{suffix}", record))
    assert row.messages[-1] == {"role": "user", "content": question}
    assert alternatives(row.ground_truth) == truths
    assert (row.ability, row.level, row.data_source) == (ability, level, name)


def test_rows_of_one_file_may_differ_and_blank_ones_have_no_answer(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mixed.jsonl",
        {"question": "One?", "answer": ["1", ""]},
        {"problem": "Two?", "answer": 2},
        {"question": "None?", "answer": None},
        {"question": "Which?", "options": None, "answer": "x"},
    )
    assert [row.ground_truth for row in read(path)] == ["1", "2", "", "x"]


def test_a_layout_nobody_knows_is_named_with_its_file_its_row_and_its_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.jsonl", {"question": "One?", "answer": "1"}, {"premise": "p", "label": 1})
    with pytest.raises(DataError) as caught:
        read(path)
    missing = f"{path}: line 2: no column prompt, reward_model.ground_truth; there are: premise, label"
    assert str(caught.value) == missing
    path = write(tmp_path / "odd.parquet", {"premise": "p", "label": 1})
    with pytest.raises(DataError, match=r"odd\.parquet: no column .*; there are: premise, label"):
        read(path)
    path = write(tmp_path / "shape.jsonl", {"question": 3, "answer": "1"})
    with pytest.raises(DataError, match=r"shape\.jsonl: row 0: Expected `array`, got `int`"):
        read(path)


def test_columns_that_were_asked_for_are_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "One?", "answer": "1", "label": "2"})
    assert read(path, prompt="question", answer="label")[0].ground_truth == "2"
    with pytest.raises(DataError, match=r"no column gold; there are: question, answer, label"):
        read(path, prompt="question", answer="gold")
