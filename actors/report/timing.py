"""Timing: where the seconds of a run went, part by part, and what each part got done while it was busy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from actors.report.record import RunRecord, Span


class Share(NamedTuple):
    """A named part of some time."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a part got done a second while it was busy."""

    part: str
    unit: str
    amount: int
    busy_s: float

    @property
    def per_second(self) -> float:
        return self.amount / self.busy_s if self.busy_s > 0 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All of it; seconds on the clock of the run."""

    total_s: float
    phases: list[Share]
    """By name, in the order in which they first began; together `total_s`, but for what no phase covers."""
    training_s: float
    """Of the phases in which steps were finished."""
    learner: list[Share]
    """`training_s` as the learner's side of the loop spent it."""
    generators_busy_s: float | None
    """In forward passes while training, summed over generators; None where it was not measured."""
    tools_busy_s: float
    """While training, with at least one call under way."""
    rates: list[Rate]
    """While training, but for evaluations' tool calls, which no journal holds."""


STEPPING, PUBLISHING, WAITING, REST = "optimiser steps", "publishing weights", "waiting for a batch", "everything else"
UNNAMED = "before, between and after the phases"


def measure(record: RunRecord) -> Timing:
    """Add up the parts of a run."""
    windows = training_windows(record)
    training_s = sum(window.duration_s for window in windows)
    generated = _generated(record, windows) if record.generators else None
    busy = union([overlap for run in record.tools if run.was_executed for overlap in _within(run.span, windows)])
    rates: list[Rate] = []
    if generated is not None and generated[0]:
        rates.append(Rate(part="generators", unit="tokens sampled", amount=round(generated[1]), busy_s=generated[0]))
    if record.rows:
        step_s, trained = sum(row.step_s for row in record.rows), sum(row.num_trained_tokens for row in record.rows)
        computed = sum(row.num_computed_tokens for row in record.rows)
        rates.append(Rate(part="learner", unit="tokens trained", amount=trained, busy_s=step_s))
        rates.append(Rate(part="learner", unit="tokens computed", amount=computed, busy_s=step_s))
        of_paths = sum(row.num_path_tokens for row in record.rows)
        if of_paths > computed:  # what trees had in common was computed once
            rates.append(Rate(part="learner", unit="tokens of paths", amount=of_paths, busy_s=step_s))
    ended = [run for run in record.tools if any(w.start_s <= run.span.end_s <= w.end_s for w in windows)]
    executed = sum(run.was_executed for run in ended)
    if executed:
        rates.append(Rate(part="tools", unit="calls executed", amount=executed, busy_s=busy))
    return Timing(
        total_s=record.end_s,
        phases=phase_shares(record),
        training_s=training_s,
        learner=_learner(record, training_s),
        generators_busy_s=None if generated is None else generated[0],
        tools_busy_s=busy,
        rates=rates,
    )


def phase_shares(record: RunRecord) -> list[Share]:
    """Seconds of each phase, those of one name together, and of what no phase covers.

    Phases a (0 to 2 s), b (2 to 7 s), a (7 to 8 s) of a run of 10 s: a 3, b 5, and 2 that have no name.
    """
    seconds: dict[str, float] = {}
    for phase in record.phases:
        seconds[phase.name] = seconds.get(phase.name, 0.0) + phase.wall_s
    rest = record.end_s - sum(seconds.values())
    if seconds and rest > 0.01 * record.end_s:
        seconds[UNNAMED] = rest
    return [Share(name, s) for name, s in seconds.items()]


def training_windows(record: RunRecord) -> list[Span]:
    """The phases in which steps were finished; from the first wait to the end of the last step without any phases."""
    if not record.steps:
        return []
    names = {
        phase.name for phase in record.phases for step in record.steps if phase.start_s <= step.end_s <= phase.end_s
    }
    if names:
        return [Span(phase.start_s, phase.end_s) for phase in record.phases if phase.name in names]
    return [Span(max(record.steps[0].start_s, 0.0), record.steps[-1].end_s)]


def generate_seconds(record: RunRecord) -> list[float]:
    """Busy seconds of generators while training, from the end of each step's predecessor to its own; empty where
    nothing was measured. Between two measurements generators count as evenly busy."""
    if not record.generators:
        return []
    windows = training_windows(record)
    ends = [step.end_s for step in record.steps]
    spans = [Span(start_s, end_s) for start_s, end_s in pairwise([0.0, *ends])]
    return [_generated(record, list(_within(span, windows)))[0] for span in spans]


def union(spans: Iterable[Span]) -> float:
    """Seconds covered by at least one of the spans.

    >>> union([Span(0, 2), Span(1, 3), Span(5, 6)])
    4.0
    """
    covered, reached = 0.0, float("-inf")
    for start_s, end_s in sorted(spans):
        covered += max(end_s - max(start_s, reached), 0.0)
        reached = max(reached, end_s)
    return covered


def _within(span: Span, windows: Sequence[Span]) -> Iterable[Span]:
    for window in windows:
        start_s, end_s = max(span.start_s, window.start_s), min(span.end_s, window.end_s)
        if end_s > start_s:
            yield Span(start_s, end_s)


def _generated(record: RunRecord, spans: Sequence[Span]) -> tuple[float, float]:
    """What generators did in these spans: (busy seconds, tokens)."""
    times = [level.t for level in record.generators]
    levels = np.array([(level.busy_s, level.num_sampled_tokens) for level in record.generators])
    busy_s, tokens = (
        sum(float(np.diff(np.interp(span, times, levels[:, column]))[0]) for span in spans) for column in (0, 1)
    )
    return busy_s, tokens


def _learner(record: RunRecord, training_s: float) -> list[Share]:
    if not record.rows:
        return []
    step_s, wait_s = sum(row.step_s for row in record.rows), sum(row.wait_s for row in record.rows)
    publish_s = sum(record.published.values())
    rest_s = max(training_s - step_s - wait_s - publish_s, 0.0)
    return [Share(STEPPING, step_s), Share(PUBLISHING, publish_s), Share(WAITING, wait_s), Share(REST, rest_s)]
