"""Benchmark rows: what a file calls its questions, answers, options and levels; no two benchmarks agree on that.

    question, answer               a text; a list of right ones; an int; GSM8K's solution that ends in `#### 42`
    problem, solution, answer      AIME: the question stands under `question` too, or only under `problem`
    Question, answer, Level        GAIA, in the spellings of its two releases
    question, options, answer      multiple choice: a list or a table of options, the answer a letter or a place

A layout is found by the keys of a row alone, in the order of the tables below. ARPO's own training files (`prompt`,
`reward_model.ground_truth`) need none.
"""

import string
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import msgspec

QUESTIONS = ("question", "Question", "problem", "Problem", "query", "prompt")
ANSWERS = (
    "answer",
    "Answer",
    "Final answer",
    "final_answer",
    "golden_answers",
    "answers",
    "expected_answer",
    "ground_truth",
    "reward_model.ground_truth",
)
OPTIONS = ("options", "choices")
LEVELS = ("Level", "level", "difficulty_level", "info.difficulty_level", "difficulty", "category")
SOLUTION_MARK = "\n#### "
"""Of GSM8K: what stands behind it is the answer, what stands before it a derivation."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Under which keys a row says what; empty for what it does not say."""

    question: str
    answer: str
    options: str = ""
    level: str = ""


@lru_cache
def layout_of(keys: frozenset[str]) -> Layout | None:
    """The layout of a row with these keys (`a.b` for a field of a struct); None for one that is no known benchmark's.

    >>> layout_of(frozenset({"problem", "solution", "answer"}))
    Layout(question='problem', answer='answer', options='', level='')
    >>> layout_of(frozenset({"premise", "label"})) is None
    True
    """

    def first(names: tuple[str, ...]) -> str:
        return next((name for name in names if name in keys), "")

    question, answer = first(QUESTIONS), first(ANSWERS)
    if not question or not answer:
        return None
    # A table of options is known by the paths of its fields.
    tables = frozenset(key.split(".")[0] for key in keys)
    options = next((name for name in OPTIONS if name in tables), "")
    return Layout(question=question, answer=answer, options=options, level=first(LEVELS))


def question_of(layout: Layout, field: Callable[[str], Any]) -> Any:
    """The question as it is asked, with its options; `field` looks a key up in the row."""
    question = field(layout.question)
    options = _options(layout, field)
    if not options or not isinstance(question, str):
        return question
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def answer_of(layout: Layout, field: Callable[[str], Any]) -> Any:
    """The right answer, or a list of them; of a multiple choice the letter and the option's text."""
    answer = field(layout.answer)
    options = _options(layout, field)
    if options:
        return _chosen(answer, options)
    if isinstance(answer, str) and SOLUTION_MARK in answer:
        return answer.rpartition(SOLUTION_MARK)[2]
    return answer


def _options(layout: Layout, field: Callable[[str], Any]) -> dict[str, str]:
    """The options by their letters."""
    value = field(layout.options) if layout.options else None
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return {str(letter): str(text) for letter, text in table.items() if text is not None}
    if isinstance(value, list):
        texts = cast("list[Any]", value)
        return {letter: str(text) for letter, text in zip(string.ascii_uppercase, texts, strict=False)}
    return {}


def _chosen(answer: Any, options: Mapping[str, str]) -> Any:
    letters = list(options)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        answer = letters[answer]  # places count from 0
    if answer in options:
        return [answer, options[cast("str", answer)]]
    named = [letter for letter, text in options.items() if text == answer]
    return [*named, answer] if isinstance(answer, str) else answer
