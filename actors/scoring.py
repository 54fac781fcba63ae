"""Scoring: what each prediction is worth, by every measure that applies to it, and which of these is the set's own."""

from collections.abc import Iterable, Mapping
from typing import cast

import msgspec

from actors.eval_config import Metric
from actors.predictions import Prediction
from tools.math_equal import math_equal
from tools.qa_scores import qa_scores

MATH_SETS = frozenset({"aime24", "aime25", "gsm8k", "math", "math500"})
F1_SETS = frozenset({"2wiki", "bamboogle", "hotpotqa", "musique"})
"""For which the paper reports F1, and not what a judge says."""


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction with its scores. Produced here, completed by `judging`, consumed by `scoreboard`."""

    prediction: Prediction
    metric: Metric
    """What the set is measured by."""
    scores: dict[str, float]
    """From 0 to 1, by name; a measure that does not apply, or gave no verdict, is not there."""

    @property
    def value(self) -> float | None:
        """By the set's own metric; None where its verdict is missing."""
        return self.scores.get(self.metric)


def score_all(
    predictions: Iterable[Prediction], *, metrics: Mapping[str, Metric], has_judge: bool = False
) -> list[Scored]:
    """Score every prediction by all that needs no judge; `metrics` names sets that are measured otherwise."""
    return [score(prediction, metrics=metrics, has_judge=has_judge) for prediction in predictions]


def score(prediction: Prediction, *, metrics: Mapping[str, Metric], has_judge: bool = False) -> Scored:
    """Score one prediction. No answer is a wrong answer by every measure.

    What equals a right answer word for word needs no judge, and has the verdict "correct".
    """
    metric = metrics.get(prediction.set) or _metric_of(prediction, has_judge=has_judge)
    answer = prediction.answer or ""
    scores = cast("dict[str, float]", msgspec.to_builtins(qa_scores(answer, prediction.truths)))
    if metric == "math" or is_mathematics(prediction):
        scores["math"] = float(math_equal(answer, prediction.truths))
    if prediction.is_correct is not None:
        scores["success"] = float(prediction.is_correct)
    if metric == "judge" and (not answer.strip() or scores["em"] == 1.0):
        scores["judge"] = scores["em"]
    return Scored(prediction=prediction, metric=metric, scores=scores)


def is_mathematics(prediction: Prediction) -> bool:
    """By what the data say; by the name of the set, where they say nothing."""
    return (prediction.ability or ("math" if prediction.set in MATH_SETS else "qa")) == "math"


def _metric_of(prediction: Prediction, *, has_judge: bool) -> Metric:
    if is_mathematics(prediction):
        return "math"
    return "judge" if has_judge and prediction.set not in F1_SETS else "f1"
