"""Evaluation: pass@k is what counting all draws gives, and no more questions are in flight than allowed."""

import asyncio
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.eval_config import Greedy, PaperSampling
from actors.evaluate import Evaluation, evaluation_rollout, grow_all, pass_at_k
from actors.train import chosen_by
from engine.branching import Arpo, Chain
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.config import Section
from engine.granting import Paper, Ranked
from engine.rollout_config import BudgetConfig, RolloutConfig, SamplingConfig
from engine.tree import TreeBuilder
from engine.types import Prompt, Reward, RolloutStatus, Trajectory, TrajectoryGroup, TrajectoryTree


def prompt(row: int) -> Prompt:
    ids = np.zeros(1, np.int32)
    return Prompt(prompt_id=f"e0-r{row}", epoch=0, row=row, token_ids=ids, question="", ground_truth="")


def group(*outcomes: tuple[float, bool, str], calls: int = 0, row: int = 0) -> TrajectoryGroup:
    """A group of trajectories, each (score, whether correct, status)."""
    trajectories = tuple(
        Trajectory(path=i, leaf=0, status=RolloutStatus(status), reward=Reward(score=score, is_correct=is_correct))
        for i, (score, is_correct, status) in enumerate(outcomes)
    )
    tree = TrajectoryTree(nodes=())
    return TrajectoryGroup(prompt=prompt(row), tree=tree, trajectories=trajectories, num_tool_calls_executed=calls)


@given(n=st.integers(1, 9), data=st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_metrics_on_numbers() -> None:
    evaluation = Evaluation()
    evaluation.add(group((1.0, True, "completed"), (0.0, False, "truncated"), calls=3))
    evaluation.add(group((0.0, False, "completed"), (0.0, False, "failed"), calls=1))
    assert evaluation.metrics(k=2) == {
        "questions": 2.0,
        "success": 0.25,
        "score": 0.25,
        "tool_calls": 1.0,
        "truncated": 0.25,
        "failed": 0.25,
        "pass@2": 0.5,
    }
    assert "pass@1" not in evaluation.metrics()
    assert Evaluation().metrics(k=3)["success"] == 0.0


@given(
    count=st.integers(0, 30),
    concurrency=st.integers(1, 9),
    durations=st.lists(st.floats(0.1, 5), min_size=30, max_size=30),
)
@settings(max_examples=50)
def test_never_more_questions_in_flight_than_allowed_and_all_of_them_asked(
    count: int, concurrency: int, durations: list[float]
) -> None:
    running, most = 0, 0
    finished: list[str] = []

    async def grow(tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(durations[tree.prompt.row])
        running -= 1
        return group(row=tree.prompt.row)

    prompts = (prompt(row) for row in range(count))
    run_virtual(
        grow_all(
            prompts,
            grow,
            config=RolloutConfig(),
            concurrency=concurrency,
            on_group=lambda done: finished.append(done.prompt.prompt_id),
        )
    )
    assert sorted(finished) == sorted(f"e0-r{row}" for row in range(count))
    assert most == min(count, concurrency)


def test_a_question_that_crashes_ends_the_evaluation() -> None:
    async def grow(tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
        if tree.prompt.row == 2:
            raise RuntimeError("broken")
        await asyncio.sleep(100)
        return group()

    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(
            grow_all(map(prompt, range(9)), grow, config=RolloutConfig(), concurrency=4, on_group=lambda done: None)
        )
    assert caught.group_contains(RuntimeError, match="broken")


def test_evaluation_keeps_the_limits_of_a_path_and_drops_what_is_for_training() -> None:
    trained = RolloutConfig(
        size=16,
        branching=Arpo(),
        granting=Ranked(),
        sampling=SamplingConfig(max_response_tokens=99, temperature=1.0),
        budget=BudgetConfig(calls_per_path=3, calls_per_cohort=9, calls_per_run=10, leaves_per_cohort=7),
    )
    asked = evaluation_rollout(trained, samples=5, sampling=Greedy())
    assert (asked.size, asked.branching, asked.granting) == (5, Chain(), Paper())
    assert asked.sampling == SamplingConfig(max_response_tokens=99, temperature=0.0)
    paper = evaluation_rollout(trained, samples=1, sampling=PaperSampling()).sampling
    assert paper == SamplingConfig(max_response_tokens=99, temperature=0.6, top_p=0.95, top_k=20)
    assert asked.budget == BudgetConfig(calls_per_path=3)
    assert isinstance(trained, Section)
    assert trained.size == 16


def test_the_best_weights_are_chosen_by_validation_questions_where_there_are_some() -> None:
    assert chosen_by({"success": 0.25}) == 0.25
    assert chosen_by({"success": 0.25, "validation_success": 0.5}) == 0.5
