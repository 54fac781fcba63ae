"""Scores of an evaluation: exact values on made-up answers to questions of every layout, and what adds them up."""

import asyncio
import math
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.eval_config import EvalConfig
from actors.judging import Verdicts, judge_all
from actors.predictions import Prediction
from actors.scoreboard import Scoreboard, remarks, scoreboard, table
from actors.scoring import Scored, score, score_all
from actors.watcher import Watcher
from engine.answers import alternatives
from engine.clock import run_virtual
from engine.config import decode
from engine.errors import ConfigError, DataError, cause
from engine.types import RolloutStatus
from tests.test_benchmark_rows import LAYOUTS, write
from tests.test_benchmark_rows import read as read_rows
from tests.test_judge import ScriptedEndpoint
from tools.chat_endpoint import EndpointBusyError
from tools.judge import JudgeConfig

JUDGE = JudgeConfig(url="http://judge/v1", model="m")
F1 = ("f1", "em", "contains", "reward_f1", "reward_em")


def prediction(answer: str | None = "x", *, row: int = 0, sample: int = 0, name: str = "s", **more: Any) -> Prediction:
    return Prediction(**{"truths": ("x",), "set": name, "row": row, "sample": sample, "answer": answer} | more)


def board(*predictions: Prediction, samples: int = 1, **metrics: Any) -> Scoreboard:
    return scoreboard(score_all(predictions, metrics=metrics), samples=samples)


@pytest.mark.parametrize(
    ("layout", "answer", "metric", "value", "words"),
    [
        ("training", "\\frac{8}{2}", "math", 1.0, (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("wiki", "The A. Lee", "f1", 1.0, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("wiki", "Ann Leigh", "f1", 0.5, (0.5, 0.0, 0.0, 0.5, 0.0)),
        ("math500", "0.5", "math", 1.0, (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("aime24", "33", "math", 1.0, (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("aime25", "70", "math", 1.0, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("aime25", "71", "math", 0.0, (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("gsm8k", "1007", "math", 1.0, (0.0, 0.0, 0.0, 1.0, 1.0)),
        ("gaia", "17 birds", "f1", 2 / 3, (2 / 3, 0.0, 1.0, 2 / 3, 0.0)),
        ("gaia-hub", "17.", "f1", 0.0, (0.0, 0.0, 1.0, 1.0, 1.0)),
        ("webwalker", "last", "f1", 1.0, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("hle", "D", "f1", 1.0, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("options-list", "blue", "f1", 1.0, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("options-letter", "A", "f1", 1.0, (1.0, 1.0, 1.0, 0.0, 0.0)),
        ("options-table", "B", "f1", 1.0, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("xbench", None, "f1", 0.0, (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_an_answer_to_a_question_of_each_layout_has_its_exact_scores(
    layout: str, answer: str | None, metric: str, value: float, words: tuple[float, ...], tmp_path: Path
) -> None:
    (row,) = read_rows(write(tmp_path / f"{layout}.jsonl", LAYOUTS[layout][0]))
    said = prediction(answer, name=layout, truths=alternatives(row.ground_truth), ability=row.ability, level=row.level)
    scored = score(said, metrics={})
    assert (scored.metric, scored.value) == (metric, value)
    assert {name: scored.scores[name] for name in F1} == dict(zip(F1, words, strict=True))


def test_a_set_is_measured_by_what_its_data_say_by_its_name_or_by_what_was_asked_for() -> None:
    def metric(name: str, *, judge: bool = False, **more: Any) -> str:
        return score(prediction(name=name, **more), metrics={"hle": "em"}, has_judge=judge).metric

    assert [metric(name) for name in ("aime24", "gsm8k", "hotpotqa", "gaia", "hle")] == [
        "math",
        "math",
        "f1",
        "f1",
        "em",
    ]
    judged = [metric(name, judge=True) for name in ("aime24", "hotpotqa", "gaia", "hle")]
    assert judged == ["math", "f1", "judge", "em"]
    assert metric("valid", ability="math", judge=True) == "math"
    assert metric("aime24", ability="qa") == "f1"


def test_pass_at_k_is_unbiased_over_the_samples_of_each_question() -> None:
    # 2 of 5 right, and 0 of 5
    answers = [["x", "b", "x", "b", None], ["b"] * 5]
    found = board(
        *(prediction(answer, row=row, sample=i) for row, said in enumerate(answers) for i, answer in enumerate(said)),
        samples=5,
    ).sets["s"]
    assert (found.num_questions, found.num_predictions, found.value) == (2, 10, 0.2)
    expected = {str(k): (1 - math.comb(3, k) / math.comb(5, k)) / 2 for k in (1, 3, 5)}
    assert found.pass_at == pytest.approx(expected)
    assert found.no_answer == 0.1
    assert board(prediction()).sets["s"].pass_at == {}


def test_partly_right_is_not_right() -> None:
    found = board(prediction("x y"), prediction("x", sample=1), samples=2).sets["s"]
    # F1 of 2/3 and of 1
    assert found.value == pytest.approx(5 / 6)
    assert found.pass_at == {"1": 0.5, "2": 1.0}


def test_a_question_counts_once_however_many_answers_it_has() -> None:
    found = board(prediction("x"), prediction("b", row=1), prediction("b", row=1, sample=1), samples=2)
    assert found.sets["s"].value == 0.5
    assert found.sets["s"].scores["f1"] == pytest.approx(1 / 3)


def test_calls_levels_and_shares_by_hand() -> None:
    found = board(
        prediction("x", num_tool_calls=3, level="1", score=1.0, is_correct=True),
        prediction("b", row=1, num_tool_calls=1, level="2", score=-1.0, is_correct=False),
        prediction(None, row=2, level="2", status=RolloutStatus.FAILED),
        prediction("x", row=3, status=RolloutStatus.TRUNCATED),
    )
    one = found.sets["s"]
    assert (one.value, one.tool_calls, one.value_per_call) == (0.5, 1.0, 0.5)
    assert one.tool_productivity == pytest.approx(100 * 0.5 * 1.0 / 1.1)
    assert one.levels == {"\N{EN DASH}": 1.0, "1": 1.0, "2": 0.0}
    assert (one.truncated, one.failed, one.no_answer) == (0.25, 0.25, 0.25)
    assert (found.success, found.score) == (0.5, 0.0)
    assert remarks(found) == [
        "s: for 25.0% of the answers the infrastructure failed; they count as wrong, and the same command asks these "
        "questions again"
    ]


def test_the_average_is_of_sets_and_the_table_names_them() -> None:
    found = board(
        *(prediction("x", name="hotpotqa", row=row) for row in range(9)),
        prediction("b", name="musique"),
        prediction("12", name="aime24", truths=("12.0",), num_tool_calls=2),
    )
    assert (found.average, found.averaged) == (pytest.approx(2 / 3), ("hotpotqa", "musique", "aime24"))
    assert table(found) == (
        ["set", "metric", "value", "calls", "productivity", "questions"],
        [
            ["hotpotqa", "f1", "100.0", "0.00", "0.0", "9"],
            ["musique", "f1", "0.0", "0.00", "0.0", "1"],
            ["aime24", "math", "100.0", "2.00", "95.2", "1"],
            ["average of hotpotqa, musique, aime24", "", "66.7", "", "", ""],
        ],
    )
    assert msgspec.json.decode(msgspec.json.encode(found), type=Scoreboard) == found


def judged(
    endpoint: ScriptedEndpoint, folder: Path, *predictions: Prediction, watcher: Watcher | None = None
) -> list[Scored]:
    async def main() -> list[Scored]:
        scored = score_all(predictions, metrics={}, has_judge=True)
        verdicts = Verdicts(folder / "verdicts.jsonl", model=JUDGE.model)
        return await judge_all(scored, JUDGE, endpoint, verdicts=verdicts, watcher=watcher or Watcher())

    return run_virtual(main())


def test_the_judge_is_asked_once_for_what_is_neither_equal_nor_empty(tmp_path: Path) -> None:
    said = [prediction(answer, row=row) for row, answer in enumerate(["The x", None, "b", "b", "c"])]
    endpoint = ScriptedEndpoint("Correct", "Incorrect")
    assert [one.value for one in judged(endpoint, tmp_path, *said)] == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert len(endpoint.asked) == 2


def test_verdicts_are_kept_and_missing_ones_asked_for_again(tmp_path: Path) -> None:
    said = [prediction("b"), prediction("c", row=1)]
    busy = EndpointBusyError("HTTP 503")
    first = ScriptedEndpoint("Correct", busy)
    scored = judged(first, tmp_path, *said)
    assert [one.value for one in scored] == [1.0, None]
    found = scoreboard(scored)
    # The mean is over the one verdict there is, and says so.
    assert (found.sets["s"].value, found.sets["s"].num_missing, found.num_missing) == (1.0, 1, 1)
    assert remarks(found)[0].startswith("s: 1 of 2 answers have no verdict and are in no mean")
    second = ScriptedEndpoint("Incorrect")
    assert [one.value for one in judged(second, tmp_path, *said)] == [1.0, 0.0]
    assert len(second.asked) == 1


def test_no_verdict_at_all_is_no_value_and_no_part_of_the_average(tmp_path: Path) -> None:
    scored = judged(ScriptedEndpoint(EndpointBusyError("down")), tmp_path, prediction("b"))
    scored += score_all([prediction("x", name="musique")], metrics={})
    found = scoreboard(scored, samples=2)
    assert (found.sets["s"].value, found.sets["s"].pass_at) == (None, {})
    assert (found.average, found.averaged) == (1.0, ("musique",))
    assert table(found)[1][0][:3] == ["s", "judge", "\N{EN DASH}"]


def test_a_wrong_key_ends_the_judging_and_keeps_what_was_said(tmp_path: Path) -> None:
    endpoint = ScriptedEndpoint("Correct", ConfigError("HTTP 401"))
    with pytest.raises(ExceptionGroup) as caught:
        judged(endpoint, tmp_path, prediction("b"), prediction("c", row=1))
    assert str(cause(caught.value)) == "HTTP 401"
    assert judged(ScriptedEndpoint("Incorrect"), tmp_path, prediction("b"))[0].value == 1.0


def test_a_torn_verdict_is_none_and_another_file_is_refused(tmp_path: Path) -> None:
    judged(ScriptedEndpoint("Correct"), tmp_path, prediction("b"))
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    endpoint = ScriptedEndpoint("Incorrect")
    assert judged(endpoint, tmp_path, prediction("b"))[0].value == 0.0
    assert judged(ScriptedEndpoint("Correct"), tmp_path, prediction("b"))[0].value == 0.0
    path.write_text("no json\n")
    with pytest.raises(DataError, match=r"verdicts\.jsonl: DecodeError"):
        judged(endpoint, tmp_path, prediction("b"))


def test_verdicts_are_told_while_they_come(tmp_path: Path) -> None:
    told: list[object] = []

    class Listener(Watcher):
        def phase(self, name: str, total: int | None) -> None:
            told.append((name, total))

        def verdict(self, is_correct: bool | None) -> None:
            told.append(is_correct)

    judged(ScriptedEndpoint("Correct", "Incorrect"), tmp_path, prediction("b"), prediction("c"), watcher=Listener())
    assert told == [("judge", 2), True, False]


def test_the_section_takes_every_choice_by_name() -> None:
    raw = {"data": {"path": "x.jsonl"}, "sampling": {"kind": "paper", "top_k": -1}, "metric": {"aime24": "judge"}}
    config = decode(raw | {"judge": {"url": "http://judge/v1", "model": "m"}}, EvalConfig, source="t")
    assert config.sampling.sampling == {"temperature": 0.6, "top_p": 0.95, "top_k": -1}
    assert config.metric == {"aime24": "judge"}
    for key, value, message in (
        ("metric", {"aime24": "best"}, r"Invalid enum value 'best' - at `\$\.metric"),
        ("sampling", {"kind": "beam"}, r"Invalid value 'beam' - at `\$\.sampling\.kind`"),
        ("judge", {"url": "judge:8000", "model": "m"}, r"url 'judge:8000': expected http.* - at `\$\.judge`"),
        ("judge", {"url": "http://j", "model": "m", "key": "secret"}, r"unknown field `key` - at `\$\.judge`"),
    ):
        with pytest.raises(ConfigError, match=message):
            decode(raw | {key: value}, EvalConfig, source="t")


def test_a_thousand_predictions_of_all_kinds_are_scored_and_none_is_lost() -> None:
    kinds = [("hotpotqa", "Ann Lee", "Lee"), ("math500", "\\frac{1}{2}", "0.5"), ("gsm8k", "1,007", "1006")]
    said = [
        prediction(answer, name=name, truths=(truth,), row=row, sample=sample)
        for (name, truth, answer), row, sample in product(kinds, range(112), range(3))
    ]
    found = scoreboard(asyncio.run(_scored(said)), samples=3)
    assert {name: (one.num_predictions, one.value) for name, one in found.sets.items()} == {
        "hotpotqa": (336, pytest.approx(2 / 3)),
        "math500": (336, 1.0),
        "gsm8k": (336, 0.0),
    }
    assert len(said) > 1000


async def _scored(said: list[Prediction]) -> list[Scored]:
    return score_all(said, metrics={})
