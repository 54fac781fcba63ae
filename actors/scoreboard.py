"""Scoreboard: scores added up by set, as in the paper's Table 1, and an average that names the sets it is of."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from actors.evaluate import pass_at_k
from actors.predictions import Prediction
from actors.quantities import NOTHING
from actors.scoring import Scored
from engine.types import RolloutStatus

PASS_AT = (1, 3, 5)
"""Reported besides the number of samples, where there are so many."""


class SetScores(msgspec.Struct, frozen=True, kw_only=True):
    """What a set of questions came to. Shares are from 0 to 1."""

    metric: str
    """What it is measured by; two joined by `+` where its questions are of two kinds."""
    value: float | None
    """The mean over questions of the means over their samples; None where there is no verdict at all."""
    num_questions: int
    num_predictions: int
    num_missing: int = 0
    """Predictions that the judge gave no verdict on; they are in no mean of `value` and `pass_at`."""
    pass_at: dict[str, float] = {}
    """By k: the unbiased probability that one of k samples is right, that is, worth 1 by the metric."""
    scores: dict[str, float] = {}
    """The mean over predictions of every measure that was taken."""
    levels: dict[str, float] = {}
    """`value` by level, where the data have levels."""
    tool_calls: float = 0.0
    """For a prediction."""
    tool_productivity: float = 0.0
    """As the released code has it: 100 value c / (c + 0.1), c being `tool_calls`."""
    value_per_call: float | None = None
    """All values over all calls; None without a call."""
    no_answer: float = 0.0
    truncated: float = 0.0
    failed: float = 0.0


class Scoreboard(msgspec.Struct, frozen=True, kw_only=True):
    """What `arpo eval` writes as JSON."""

    average: float | None
    """The mean of the sets' values, each set counted once."""
    averaged: tuple[str, ...]
    """The sets that it is of."""
    sets: dict[str, SetScores]
    questions: int
    tool_calls: float
    """For a prediction, of all sets together; so are the rest."""
    truncated: float
    failed: float
    num_missing: int
    success: float | None = None
    """By the run's own reward; None for predictions without one."""
    score: float | None = None


def scoreboard(scored: Iterable[Scored], *, samples: int = 1) -> Scoreboard:
    """Add everything up; sets come in the order in which they first occur."""
    by_set: defaultdict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        by_set[one.prediction.set].append(one)
    sets = {name: _set_scores(found, samples=samples) for name, found in by_set.items()}
    values = {name: found.value for name, found in sets.items() if found.value is not None}
    everything = [one.prediction for found in by_set.values() for one in found]
    return Scoreboard(
        average=_mean(list(values.values())),
        averaged=tuple(values),
        sets=sets,
        questions=sum(found.num_questions for found in sets.values()),
        num_missing=sum(found.num_missing for found in sets.values()),
        success=_mean([float(p.is_correct) for p in everything if p.is_correct is not None]),
        score=_mean([p.score for p in everything if p.score is not None]),
        **_shares(everything),
    )


def table(board: Scoreboard) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for a person: a row for each set, its levels below it, and the average with its sets' names."""
    ks = list(dict.fromkeys(k for found in board.sets.values() for k in found.pass_at))
    headings = ["set", "metric", "value", *(f"pass@{k}" for k in ks), "calls", "productivity", "questions"]
    rows: list[list[str]] = []
    for name, found in board.sets.items():
        passes = [_percent(found.pass_at.get(k)) for k in ks]
        counts = [f"{found.tool_calls:.2f}", f"{found.tool_productivity:.1f}", f"{found.num_questions:,}"]
        rows.append([name, found.metric, _percent(found.value), *passes, *counts])
        rows += [[f"  {level}", "", _percent(value)] for level, value in found.levels.items()]
    rows.append([f"average of {', '.join(board.averaged) or 'nothing'}", "", _percent(board.average)])
    return headings, [row + [""] * (len(headings) - len(row)) for row in rows]


def remarks(board: Scoreboard) -> list[str]:
    """What a reader of the table must know besides."""
    found = [
        f"{name}: {scores.num_missing} of {scores.num_predictions} answers have no verdict and are in no mean; "
        "the same command asks for them again"
        for name, scores in board.sets.items()
        if scores.num_missing
    ]
    found += [
        f"{name}: for {scores.failed:.1%} of the answers the infrastructure failed; they count as wrong, and the same "
        "command asks these questions again"
        for name, scores in board.sets.items()
        if scores.failed
    ]
    return found


def _set_scores(scored: Sequence[Scored], *, samples: int) -> SetScores:
    rows = _by_row(scored)
    valued = [one for one in scored if one.value is not None]
    value = _value(scored)
    shares = _shares([one.prediction for one in scored])
    calls = shares["tool_calls"]
    total = sum(one.value or 0.0 for one in valued)
    num_calls = sum(one.prediction.num_tool_calls for one in valued)
    return SetScores(
        metric="+".join(sorted({one.metric for one in scored})),
        value=value,
        num_questions=len(rows),
        num_predictions=len(scored),
        num_missing=len(scored) - len(valued),
        pass_at=_pass_at(rows.values(), samples=samples),
        scores=_means(scored),
        levels=_by_level(scored),
        tool_productivity=100 * (value or 0.0) * calls / (calls + 0.1),
        value_per_call=total / num_calls if num_calls else None,
        no_answer=_share(scored, lambda one: not (one.prediction.answer or "").strip()),
        **shares,
    )


def _by_row(scored: Iterable[Scored]) -> dict[int, list[Scored]]:
    rows: defaultdict[int, list[Scored]] = defaultdict(list)
    for one in scored:
        rows[one.prediction.row].append(one)
    return rows


def _value(scored: Sequence[Scored]) -> float | None:
    questions = [_mean([one.value for one in row if one.value is not None]) for row in _by_row(scored).values()]
    return _mean([value for value in questions if value is not None])


def _pass_at(rows: Iterable[Sequence[Scored]], *, samples: int) -> dict[str, float]:
    """Of the questions that have k answers with a value; no entry where there is none."""
    if samples == 1:
        return {}
    counts = [
        (sum(one.value is not None for one in row), sum(one.value == 1.0 for one in row))  # of each question
        for row in rows
    ]
    found: dict[str, float] = {}
    for k in sorted({k for k in PASS_AT if k < samples} | {samples}):
        rate = _mean([pass_at_k(n, correct, k) for n, correct in counts if n >= k])
        if rate is not None:
            found[str(k)] = rate
    return found


def _by_level(scored: Sequence[Scored]) -> dict[str, float]:
    levels: defaultdict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        levels[one.prediction.level].append(one)
    if set(levels) == {""}:
        return {}
    values = {level or NOTHING: _value(found) for level, found in sorted(levels.items())}
    return {level: value for level, value in values.items() if value is not None}


def _means(scored: Iterable[Scored]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for one in scored:
        totals.update(one.scores)  # pyright: ignore[reportArgumentType]
        counts.update(one.scores.keys())
    return {name: totals[name] / count for name, count in counts.items()}


def _shares(predictions: Sequence[Prediction]) -> dict[str, float]:
    count = max(len(predictions), 1)
    return {
        "tool_calls": sum(p.num_tool_calls for p in predictions) / count,
        "truncated": sum(p.status is RolloutStatus.TRUNCATED for p in predictions) / count,
        "failed": sum(p.status is RolloutStatus.FAILED for p in predictions) / count,
    }


def _share(scored: Sequence[Scored], holds: Callable[[Scored], bool]) -> float:
    return sum(map(holds, scored)) / max(len(scored), 1)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percent(value: float | None) -> str:
    """`31.2`: in percent, to one decimal place, as the paper has it."""
    return NOTHING if value is None else f"{100 * value:.1f}"
