"""What a group must be to be trained: refused where it finishes, by the reason, and not where it would end the run."""

from typing import Any

import msgspec
import numpy as np
import pytest

from actors.config import Config, HfModel
from actors.credit import credit
from engine.dataset import DataConfig
from engine.errors import LearnerError
from engine.types import Node, TrajectoryGroup
from learner.config import LearnerConfig
from tests.credit_trees import DONE, FAILED, P, S, group, node


def configured(**learner: Any) -> Config:
    return Config(model=HfModel(path=""), data=DataConfig(path=""), learner=LearnerConfig(**learner))


def two_paths(first: Node | None = None, *, rewards: tuple[float, float] = (1.0, 0.0)) -> TrajectoryGroup:
    nodes = [node(-1, P, 2), first or node(0, S, 3), node(0, S, 4)]
    return group(nodes, [(1, rewards[0], DONE), (2, rewards[1], DONE)])


def test_a_sound_group_has_a_sample() -> None:
    sample = credit(two_paths(), configured())
    assert sample is not None
    assert len(sample.advantages) == 2


def test_a_group_without_contrast_has_none() -> None:
    assert credit(two_paths(rewards=(1.0, 1.0)), configured()) is None
    one = group([node(-1, P, 2), node(0, S, 3)], [(1, 1.0, DONE)])
    assert credit(one, configured()) is None
    lost = group([node(-1, P, 2), node(0, S, 3), node(0, S, 3)], [(1, 1.0, DONE), (2, 0.0, FAILED)])
    assert credit(lost, configured()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": np.array([-1.0, np.nan, -1.0], np.float32)}, "a log-probability is not finite"),
        ({"logprobs": np.array([-1.0, -1.0], np.float32)}, "3 sampled tokens have 2 log-probabilities and 3 versions"),
        ({"versions": np.zeros(1, np.int32)}, "3 sampled tokens have 3 log-probabilities and 1 versions"),
    ],
    ids=["nan", "without_a_logprob", "without_a_version"],
)
def test_a_malformed_token_is_refused_by_prompt_and_node(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnerError, match=f"prompt e0-r0, node 1: {message}"):
        credit(two_paths(msgspec.structs.replace(node(0, S, 3), **changes)), configured())


def test_a_trajectory_beyond_the_limit_is_refused() -> None:
    assert credit(two_paths(), configured(max_trajectory_tokens=6)) is not None
    with pytest.raises(LearnerError, match=r"a trajectory of 6 tokens, learner\.max_trajectory_tokens is 5"):
        credit(two_paths(), configured(max_trajectory_tokens=5))
