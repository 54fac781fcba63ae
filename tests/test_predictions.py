"""Predictions on disk: what is read from trees and files, and what a second process need not ask again."""

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.measure import QuestionSet, set_names
from actors.predictions import Prediction, PredictionFile, predictions_of, read_predictions
from engine.dataset_files import Row
from engine.errors import ConfigError, DataError
from engine.types import (
    Node,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)
from tests.test_dataset import read, record, write
from tools.answers import final_answer

FAILED, COMPLETED, TRUNCATED = RolloutStatus.FAILED, RolloutStatus.COMPLETED, RolloutStatus.TRUNCATED


class LetterRenderer:
    """One token a letter."""

    def text(self, token_ids: np.ndarray) -> str:
        return "".join(map(chr, token_ids))


def node(parent: int, kind: NodeKind, text: str) -> Node:
    ids = np.array([ord(c) for c in text], np.int32)
    of_sampled = np.zeros(ids.size if kind is NodeKind.SAMPLED else 0)
    floats = of_sampled.astype(np.float32)
    return Node(
        parent=parent,
        kind=kind,
        token_ids=ids,
        logprobs=floats,
        versions=of_sampled.astype(np.int32),
        entropies=floats,
    )


def prediction(row: int, sample: int = 0, *, answer: str = "a", status: RolloutStatus = COMPLETED) -> Prediction:
    return Prediction(set="s", truths=("a",), answer=answer, row=row, sample=sample, status=status)


def test_a_tree_gives_a_prediction_a_trajectory_with_what_was_said_behind_the_last_result() -> None:
    nodes = (
        node(-1, NodeKind.PROMPT, "?"),
        node(0, NodeKind.SAMPLED, "\\boxed{draft}<search>"),
        node(1, NodeKind.OBSERVED, "\\boxed{page}"),
        node(2, NodeKind.SAMPLED, "so <answer>"),
        node(3, NodeKind.SAMPLED, "\\boxed{Rome}</answer>"),
        node(3, NodeKind.SAMPLED, "no end"),
    )
    right = Reward(score=1.1, is_correct=True)
    trajectories = (
        Trajectory(path=0, leaf=4, status=COMPLETED, reward=right, num_tool_calls=1),
        Trajectory(path=1, leaf=5, status=TRUNCATED, reward=Reward(score=-1.0), num_tool_calls=1),
        Trajectory(path=2, leaf=2, status=TRUNCATED, reward=Reward(score=-1.0), num_tool_calls=1),
    )
    prompt = Prompt(
        prompt_id="p", epoch=0, row=7, token_ids=nodes[0].token_ids, question="Where?", ground_truth='["Rome", "Roma"]'
    )
    group = TrajectoryGroup(prompt=prompt, tree=TrajectoryTree(nodes=nodes), trajectories=trajectories)
    row = Row(index=7, messages=(), ground_truth='["Rome", "Roma"]', data_source="d", ability="qa", level="hard")
    first, second, third = predictions_of(group, row=row, name="cities", renderer=LetterRenderer())  # pyright: ignore
    assert first == Prediction(
        set="cities",
        row=7,
        question="Where?",
        truths=("Rome", "Roma"),
        answer="Rome",
        text="so <answer>\\boxed{Rome}</answer>",
        ability="qa",
        level="hard",
        num_tool_calls=1,
        score=1.1,
        is_correct=True,
    )
    assert (second.sample, second.answer, second.text) == (1, "no end", "so <answer>no end")
    assert (third.sample, third.answer, third.text, third.status) == (2, None, "", TRUNCATED)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>t</think><answer>It is \\boxed{\\frac{1}{2}}.</answer>", "\\frac{1}{2}"),
        ("<answer> Rome </answer>", "Rome"),
        ("<answer>\\boxed{a}</answer> no, <answer>\\boxed{b}</answer>", "b"),
        ("<answer>cut off", "cut off"),
        ("<answer></answer>", None),
        ("so it is \\boxed{4}", "4"),
        ("\\boxed{1} <result>\\boxed{2}</result> and no answer", None),
        ("four", None),
        ("", None),
    ],
)
def test_the_answer_is_what_a_response_ends_with(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_predictions_of_others_need_little(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"truths": ["4"], "answer": "5", "their_own": 1}\n\n'
        '{"truths": ["4"], "text": "<answer>\\\\boxed{4}</answer>", "set": "sums", "row": 9, "sample": 1}\n'
        '{"truths": ["4"]}\n'
    )
    assert list(read_predictions(path)) == [
        Prediction(set="mine", row=0, truths=("4",), answer="5"),
        Prediction(set="sums", row=9, sample=1, truths=("4",), answer="4", text="<answer>\\boxed{4}</answer>"),
        Prediction(set="mine", row=3, truths=("4",), answer=None),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"answer": "5"}', r"line 2: Object missing required field `truths`"),
        ('{"truths": [], "answer": "5"}', r"line 2: no right answer - at `\$\.truths`"),
        ('{"truths": "4", "answer": "5"}', r"line 2: Expected `array`, got `str` - at `\$\.truths`"),
        ("{", r"line 2: Input data was truncated"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"truths": ["4"], "answer": "5"}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(read_predictions(path))
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(DataError, match="none"):
        list(read_predictions(tmp_path / "none.jsonl"))


def test_a_question_is_done_when_all_its_samples_are_there_and_none_failed(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    file = PredictionFile(path, samples=2)
    assert file.done == frozenset()
    file.append([prediction(0), prediction(0, 1)])
    file.append([prediction(1), prediction(1, 1, status=FAILED)])
    file.append([prediction(2)])
    for known in (file, PredictionFile(path, samples=2)):
        assert known.done == {0}
        assert known.of([2, 0]) == [prediction(0), prediction(0, 1), prediction(2)]
    # Asked again, the later answers count.
    file.append([prediction(1, answer="b"), prediction(1, 1, answer="c")])
    again = PredictionFile(path, samples=2)
    assert again.done == {0, 1}
    assert [p.answer for p in again.of([1])] == ["b", "c"]


def test_a_line_that_a_crash_tore_is_dropped_and_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.jsonl"
    whole = msgspec.json.encode(prediction(0)) + b"\n"
    path.write_bytes(whole + whole[:20])
    with caplog.at_level(logging.WARNING):
        file = PredictionFile(path, samples=1)
    assert [record.message for record in caplog.records] == [f"{path}: a torn last line is dropped"]
    file.append([prediction(1)])
    assert PredictionFile(path, samples=1).done == {0, 1}


def test_a_second_process_asks_what_the_first_one_did_not(tmp_path: Path) -> None:
    data = write(tmp_path / "sums.jsonl", [record(f"{i}?", str(i)) for i in range(4)])
    first = QuestionSet("sums", read(data, order="file"), tmp_path, samples=1)
    assert [prompt.row for prompt in first.open_prompts] == [0, 1, 2, 3]
    first.file.append([prediction(2)])
    first.file.append([prediction(0)])
    second = QuestionSet("sums", read(data, order="file"), tmp_path, samples=1)
    assert [prompt.row for prompt in second.open_prompts] == [1, 3]
    assert [p.row for p in second.predictions] == [0, 2]
    # Fewer questions are a part of what is there; other questions are not.
    limited = QuestionSet("sums", read(data, order="file", limit=1), tmp_path, samples=1)
    assert (limited.open_prompts, [p.row for p in limited.predictions]) == ([], [0])
    other = write(tmp_path / "other.jsonl", [record("0?", "1")])
    assert len(QuestionSet("sums", read(other, order="file"), tmp_path, samples=1).open_prompts) == 1


def test_sets_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a/math\.jsonl, b/math/test\.jsonl; rename a file"):
        set_names(["a/math.jsonl", "x.jsonl", "b/math/test.jsonl"])
    assert set_names(["test.jsonl"]) == ["test"]
