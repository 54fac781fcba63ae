"""Scores of answers: exact values on made-up answers, for words and for mathematics."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.math_equal import TIMEOUT_S, math_equal
from tools.qa_scores import QaScores, qa_scores


def scores(f1: float, em: float, contains: float, reward_f1: float, reward_em: float) -> QaScores:
    return QaScores(f1=f1, em=em, contains=contains, reward_f1=reward_f1, reward_em=reward_em)


@pytest.mark.parametrize(
    ("answer", "truths", "expected"),
    [
        ("Ann Lee", ("ann lee",), scores(1, 1, 1, 1, 1)),
        ("the  Ann Lee", ("Ann Lee",), scores(1, 1, 1, 1, 1)),
        # Punctuation stays for the evaluation, and goes for the reward.
        ("Ann Lee.", ("Ann Lee",), scores(0.5, 0, 1, 1, 1)),
        ("U.S.", ("US",), scores(0, 0, 0, 1, 1)),
        ("-5", ("5",), scores(0, 0, 1, 1, 1)),
        # 3 of 4 said words, 3 of 4 right ones
        ("red old car here", ("red new car here",), scores(0.75, 0, 0, 0.75, 0)),
        # Each score takes the best of the right answers, not all the same one.
        ("blue car", ("blue", "blue car park"), scores(0.8, 0, 1, 0.8, 0)),
        # Yes and no are all or nothing for the reward alone.
        ("yes indeed", ("yes",), scores(2 / 3, 0, 1, 0, 0)),
        # Nothing but an article is a word for the evaluation, and nothing for the reward.
        ("A", ("a",), scores(1, 1, 1, 0, 0)),
        ("C", ("A",), scores(0, 0, 0, 0, 0)),
        ("", ("the",), scores(0, 0, 0, 0, 0)),
        ("anything", (), scores(0, 0, 0, 0, 0)),
    ],
)
def test_words_are_scored_by_both_normalisations(answer: str, truths: tuple[str, ...], expected: QaScores) -> None:
    assert qa_scores(answer, truths) == expected


@given(truths=st.lists(st.text(), max_size=4), answer=st.text())
def test_scores_are_shares_and_another_right_answer_never_hurts(answer: str, truths: list[str]) -> None:
    found, more = qa_scores(answer, truths), qa_scores(answer, [*truths, answer])
    for name in found.__struct_fields__:
        assert 0 <= getattr(found, name) <= getattr(more, name) <= 1
    assert found.em <= found.contains


@pytest.mark.parametrize(
    ("answer", "truth", "is_equal"),
    [
        ("0.5", "\\frac{1}{2}", True),
        ("\\dfrac12", "\\frac{1}{2}", True),
        ("1,007", "1007", True),
        ("033", "33", True),
        ("-5", "5", False),
        ("x+1", "1 + x", True),
        ("$x + 1$", "1 + x", True),
        ("p-q", "q-p", False),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("3\\sqrt{3} - 6", "-6 + 3\\sqrt3", True),
        ("\\frac{\\pi}{2}", "\\frac12\\pi", True),
        ("3.14159", "\\pi", False),
        ("0.333333", "\\frac13", True),
        ("0.333", "\\frac13", False),
        ("(1, 2)", "(2, 1)", False),
        ("\\{1, 2\\}", "\\{2, 1\\}", True),
        ("[0, 1)", "[0,1)", True),
        ("[0, 1)", "[0,1]", False),
        ("90^\\circ", "90", True),
        ("12 \\text{ cm}", "12", True),
        ("\\text{east}", "east", True),
        ("one half", "\\frac12", False),
        ("", "0", False),
        ("1" * 2000 + "+1", "2", False),
    ],
)
def test_mathematics_is_compared_by_its_meaning(answer: str, truth: str, is_equal: bool) -> None:
    assert math_equal(answer, [truth]) is is_equal
    assert math_equal(answer, ["\\alpha", truth]) is is_equal


def test_what_no_computer_simplifies_is_unequal_in_the_time_there_is() -> None:
    start_s = time.monotonic()
    assert not math_equal("9^{9^{9^9}}", ["3"])
    assert time.monotonic() - start_s < 10 * TIMEOUT_S


def test_a_thread_may_compare_as_well() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(math_equal("1+x", ["x+1"])))
    thread.start()
    thread.join()
    assert found == [True]
