"""Figures: what a person reads off the steps of RL: the latest one, the last few, and the way here."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from actors.progress import LATELY, Progress
from actors.quantities import count, duration, percent, sparkline
from engine.metrics import StepMetrics


class Figure(NamedTuple):
    """One line of the table."""

    name: str
    latest: str
    lately: str
    """The mean over the last few steps."""


class Curve(NamedTuple):
    """One sparkline."""

    name: str
    blocks: str
    ends: str
    """From where to where."""


def figures(progress: Progress) -> tuple[list[Figure], list[Figure]]:
    """How learning goes, and how rollouts go; at least one step has been made. What never happened has no line."""
    rows = progress.rows
    lately = rows[-LATELY:]

    def figure(name: str, value: Callable[[StepMetrics], float], form: Callable[[float], str]) -> Figure:
        return Figure(name, form(value(rows[-1])), form(_mean([value(row) for row in lately])))

    def whole(name: str, value: Callable[[StepMetrics], int]) -> Figure:
        mean = _mean([value(row) for row in lately])
        return Figure(name, count(value(rows[-1])), f"{mean:.1f}" if mean < 99.95 else count(mean))

    def rate(of: Sequence[StepMetrics]) -> str:
        return count(sum(row.num_sampled_tokens for row in of) / sum(progress.span_s(row) for row in of))

    learning = [
        figure("reward", lambda row: row.reward, "{:.3f}".format),
        figure("success", lambda row: row.success, percent),
        whole("staleness", lambda row: row.staleness),
        figure("KL to rollouts", lambda row: row.kl_rollout, "{:.1e}".format),
        figure("learner step", lambda row: row.step_s, duration),
        figure("learner waits", lambda row: row.wait_s, duration),
    ]
    rollouts = [
        Figure("sampled tokens/s", rate(rows[-1:]), rate(lately)),
        whole("calls requested", lambda row: row.num_tool_calls_requested),
        whole("calls executed", lambda row: row.num_tool_calls_executed),
        whole("forks", lambda row: row.num_forks),
    ]
    sometimes: dict[str, Callable[[StepMetrics], int]] = {
        "truncated": lambda row: row.num_truncated,
        "failed": lambda row: row.num_failed,
        "groups refused": lambda row: row.num_refused,
    }
    return learning, rollouts + [whole(name, value) for name, value in sometimes.items() if any(map(value, rows))]


def curves(progress: Progress, *, width: int) -> list[Curve]:
    """Success, from 0 to 1, and reward, from its least to its greatest, over all steps; at most `width` blocks wide."""
    if not progress.rows:
        return []
    success = [row.success for row in progress.rows]
    reward = [row.reward for row in progress.rows]
    return [
        Curve("success", sparkline(success, width=width, low=0.0, high=1.0), _ends(success, percent)),
        Curve(
            "reward",
            sparkline(reward, width=width, low=min(reward), high=max(reward)),
            _ends(reward, "{:.3f}".format),
        ),
    ]


def evaluations(progress: Progress, *, width: int) -> str:
    """The first evaluation, and as many of the last ones as there is room for."""
    found = [f"step {count(step)}: {percent(success)}" for step, success in progress.evaluations]
    for num_left_out in range(len(found)):
        shown = [*found[:1], *(["…"] if num_left_out else []), *found[1 + num_left_out :]]
        if len(line := "   ".join(shown)) <= width:
            return line
    return found[-1] if found else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ends(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Means over some steps at both ends, as one step says little."""
    size = max(min(LATELY, len(values) // 4), 1)
    return f"{form(_mean(values[:size]))} → {form(_mean(values[-size:]))}" if len(values) > 1 else form(values[0])
