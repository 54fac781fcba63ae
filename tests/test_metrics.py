"""Metrics: one row a step, each event counted in exactly one of them, and nothing of an untrained group in a mean."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.events import (
    AnyEvent,
    BatchTaken,
    Evaluated,
    ForkConsidered,
    Forked,
    GroupRefused,
    PathEnded,
    PromptAdmitted,
    Rewarded,
    StepFinished,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    WeightsPublished,
)
from engine.metrics import MetricsFold, StepMetrics
from engine.reports import StepReport
from engine.types import Prompt, Reward, RolloutStatus, ToolCall, ToolResult


def admitted(name: str) -> PromptAdmitted:
    ids = np.zeros(1, np.int32)
    prompt = Prompt(prompt_id=name, epoch=0, row=0, token_ids=ids, question="", ground_truth="")
    return PromptAdmitted(prompt_id=name, prompt=prompt, version=0, index=0, cohort=0)


def tokens(name: str, *, count: int, version: int, cached: int = 0, prefilled: int = 0) -> TokensSampled:
    floats = np.zeros(count, np.float32)
    return TokensSampled(
        prompt_id=name,
        path=0,
        token_ids=np.zeros(count, np.int32),
        logprobs=floats,
        entropy_low=floats,
        entropy_high=floats,
        versions=np.full(count, version, np.int32),
        num_cached_tokens=cached,
        num_prefilled_tokens=prefilled,
    )


def ended(name: str, path: int, *, score: float, is_correct: bool = False, status: str = "completed") -> list[AnyEvent]:
    return [
        Rewarded(prompt_id=name, path=path, reward=Reward(score=score, is_correct=is_correct)),
        PathEnded(prompt_id=name, path=path, status=RolloutStatus(status)),
    ]


def finished(step: int, *, version: int | None = None, t: float = 0.0) -> StepFinished:
    report = StepReport(
        step=step,
        version=step if version is None else version,
        loss=0.25,
        grad_norm=1.5,
        learning_rate=0.1,
        num_trained_tokens=7,
        num_computed_tokens=9,
        entropy=0.5,
        kl_rollout=0.01,
        ratio_max=1.25,
        clip_fraction=0.125,
        duration_s=2.0,
    )
    return StepFinished(report=report, t=t)


def rows(*events: AnyEvent) -> list[StepMetrics]:
    fold = MetricsFold()
    return [row for event in events if (row := fold.apply(event)) is not None]


def called(name: str, *results: ToolResult) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    for index, result in enumerate(results):
        call = ToolCall(name="search", arguments={})
        events.append(ToolRequested(prompt_id=name, path=0, call=call, index=index))
        events.append(ToolFinished(prompt_id=name, path=0, index=index, result=result))
    return events


def considered(name: str, *, is_wanted: bool) -> ForkConsidered:
    numbers: dict[str, Any] = dict.fromkeys(("entropy_low", "entropy_high", "baseline", "score", "coin"), 0.0)
    return ForkConsidered(prompt_id=name, path=0, observation=1, length=3, is_wanted=is_wanted, **numbers)


def test_a_row_holds_what_happened_since_the_row_before() -> None:
    ok = ToolResult(name="search", text="", duration_s=0.5)
    cached = msgspec.structs.replace(ok, is_cached=True, duration_s=0.0)
    refused = msgspec.structs.replace(ok, status="refused", duration_s=0.0)
    first, second = rows(
        admitted("a"),
        tokens("a", count=5, version=0, cached=3, prefilled=4),
        *called("a", ok, cached, refused),
        considered("a", is_wanted=True),
        considered("a", is_wanted=False),
        Forked(prompt_id="a", path=0, child=1, length=3),
        *ended("a", 0, score=1.0, is_correct=True),
        *ended("a", 1, score=0.0, status="truncated"),
        BatchTaken(step=1, prompt_ids=("a",), t=3.0),
        finished(1, t=5.0),
        WeightsPublished(version=1, step=1, prompt_ids=("a",), t=5.5),
        admitted("b"),
        tokens("b", count=2, version=1),
        *ended("b", 0, score=0.5),
        BatchTaken(step=2, prompt_ids=("b",), t=8.0),
        finished(2, t=9.0),
    )
    assert (first.step, first.t, first.version) == (1, 5.0, 1)
    assert (first.reward, first.success) == (0.5, 0.5)
    assert (first.num_sampled_tokens, first.num_cached_tokens, first.num_prefilled_tokens) == (5, 3, 4)
    assert (first.num_tool_calls_requested, first.num_tool_calls_executed, first.tool_s) == (3, 1, 0.5)
    assert (first.num_forks_considered, first.num_forks_wanted, first.num_forks) == (2, 1, 1)
    assert (first.num_trajectories, first.num_truncated, first.num_failed) == (2, 1, 0)
    assert (first.loss, first.grad_norm, first.step_s, first.num_trained_tokens) == (0.25, 1.5, 2.0, 7)
    assert (second.num_sampled_tokens, second.num_tool_calls_requested, second.num_forks) == (2, 0, 0)
    assert (second.reward, second.num_trajectories, second.tool_s) == (0.5, 1, 0.0)


def test_staleness_is_that_of_the_oldest_trained_token() -> None:
    (row,) = rows(
        admitted("a"),
        admitted("b"),
        tokens("a", count=1, version=2),
        tokens("b", count=1, version=3),
        tokens("a", count=1, version=3),
        BatchTaken(step=5, prompt_ids=("a", "b")),
        finished(5, version=5),
    )
    assert row.staleness == 4 - 2


def test_refused_and_untrained_groups_enter_no_mean_but_are_counted() -> None:
    (row,) = rows(
        *(admitted(name) for name in "abc"),
        tokens("c", count=1, version=0),
        *ended("a", 0, score=1.0, is_correct=True),
        *ended("b", 0, score=-1.0),
        *ended("c", 0, score=-1.0),
        GroupRefused(prompt_id="b", reason="no learning signal"),
        BatchTaken(step=1, prompt_ids=("a",)),
        finished(1),
    )
    assert (row.reward, row.success, row.num_groups, row.num_refused, row.num_trajectories) == (1.0, 1.0, 1, 1, 3)


def test_a_failed_trajectory_has_no_reward() -> None:
    (row,) = rows(
        admitted("a"),
        *ended("a", 0, score=1.0),
        *ended("a", 1, score=0.0, status="failed"),
        BatchTaken(step=1, prompt_ids=("a",)),
        finished(1),
    )
    assert (row.reward, row.num_failed) == (1.0, 1)


def test_a_step_that_was_trained_again_after_a_crash_has_one_row() -> None:
    again = [finished(1), BatchTaken(step=2, prompt_ids=()), finished(1), finished(2)]
    assert [row.step for row in rows(BatchTaken(step=1, prompt_ids=()), *again)] == [1, 2]


@given(steps=st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4), min_size=1, max_size=8))
def test_totals_over_all_rows_are_the_totals_over_all_events(steps: list[list[tuple[int, bool]]]) -> None:
    fold = MetricsFold()
    found: list[StepMetrics] = []
    for number, groups in enumerate(steps, start=1):
        names = [f"{number}-{i}" for i in range(len(groups))]
        events: list[AnyEvent] = []
        for name, (count, is_executed) in zip(names, groups, strict=True):
            result = ToolResult(name="search", text="", is_cached=not is_executed)
            events += [admitted(name), tokens(name, count=count, version=number - 1), *called(name, result)]
            events += ended(name, 0, score=float(count))
        events += [BatchTaken(step=number, prompt_ids=tuple(names)), finished(number)]
        found += [row for event in events if (row := fold.apply(event)) is not None]
    assert [row.step for row in found] == list(range(1, len(steps) + 1))
    flat = [group for groups in steps for group in groups]
    assert sum(row.num_sampled_tokens for row in found) == sum(count for count, _ in flat)
    executed = sum(is_executed for _, is_executed in flat)
    assert sum(row.num_tool_calls_executed for row in found) == fold.num_tool_calls_executed == executed
    assert fold.num_tool_calls_requested == sum(row.num_tool_calls_requested for row in found) == len(flat)
    assert fold.train_s == pytest.approx(2.0 * len(steps))
    for row, groups in zip(found, steps, strict=True):
        assert row.reward == pytest.approx(np.mean([count for count, _ in groups]) if groups else 0.0)


def test_the_last_evaluation_is_remembered() -> None:
    fold = MetricsFold()
    for step in (0, 3):
        assert fold.apply(Evaluated(step=step, version=step, metrics={"success": 0.5})) is None
    assert fold.last_evaluation is not None
    assert fold.last_evaluation.step == 3
