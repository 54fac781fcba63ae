"""The files of a generated task: parquet in ARPO's schema, JSON lines, and the list of words."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tools.passages import NO_RESULTS
from tools.toolworld_traces import MAX_PLUS, Question, messages, observation
from tools.toolworld_world import YEARS

_TAG = re.compile(r"</?\w+>")
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("ground_truth", pa.string()), ("style", pa.string())])),
        (
            "extra_info",
            pa.struct([("index", pa.int64()), ("question", pa.string()), ("split", pa.string())]),
        ),
        ("metadata", pa.null()),
    ]
)
"""The columns of ARPO's reinforcement learning sets."""


def write_parquet(path: str, questions: Sequence[Question], *, split: str, system_prompt: str) -> None:
    """One row for each question."""
    rows = [
        {
            "data_source": "toolworld",
            "prompt": messages(question.text, system_prompt=system_prompt),
            "ability": "qa",
            "reward_model": {"ground_truth": question.answer, "style": "rule"},
            "extra_info": {"index": index, "question": question.text, "split": split},
            "metadata": None,
        }
        for index, question in enumerate(questions)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def write_jsonl(path: str, rows: Iterable[msgspec.Struct]) -> None:
    """One line of JSON for each row."""
    Path(path).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def write_words(path: str, texts: Iterable[str]) -> list[str]:
    """Every word of `texts` and every word the tools may say about them, sorted, as a JSON list; also returned.

    Tags are left out: a tokenizer knows them anyway.
    """
    numbers = " ".join(str(n) for n in (*range(1, MAX_PLUS + 1), *range(YEARS.start, YEARS.stop + MAX_PLUS)))
    # The last two are present at any size: a task without sums still has the python tool.
    words = {word for text in (*texts, numbers, observation(NO_RESULTS), "+") for word in text.split()}
    ordered = sorted(word for word in words if not _TAG.fullmatch(word))
    Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")
    return ordered
