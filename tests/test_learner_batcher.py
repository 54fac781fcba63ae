"""The flat form of trees, and rows under a budget."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError, LearnerError
from engine.types import (
    Batch,
    Node,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    Sample,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)
from learner.config import ConstantLength, SequenceMean, TokenMean
from learner.packing.batcher import balance, loss_weights, pack, split_minibatches
from learner.packing.flatten import FlatSequence, flatten
from learner.sft import batch_of, sample_of

KINDS = {"p": NodeKind.PROMPT, "s": NodeKind.SAMPLED, "o": NodeKind.OBSERVED}


def node(parent: int, kind: str, tokens: list[int]) -> Node:
    sampled = np.array(tokens if kind == "s" else [], dtype=np.float32)
    return Node(
        parent=parent,
        kind=KINDS[kind],
        token_ids=np.array(tokens, dtype=np.int32),
        logprobs=-sampled,
        versions=sampled.astype(np.int32) * 10,
        entropies=sampled,
    )


def forked_sample(**changes: object) -> Sample:
    """Prompt 1 2, sampled 3 4, observed 5, then the leaves 6 7 and 8; a third path failed after the prompt."""
    nodes = (
        node(-1, "p", [1, 2]),
        node(0, "s", [3, 4]),
        node(1, "o", [5]),
        node(2, "s", [6, 7]),
        node(2, "s", [8]),
        node(0, "s", [9]),
    )
    ends = ((3, RolloutStatus.COMPLETED), (4, RolloutStatus.TRUNCATED), (5, RolloutStatus.FAILED))
    group = TrajectoryGroup(
        prompt=Prompt(prompt_id="e0-r3", epoch=0, row=3, token_ids=nodes[0].token_ids, question="", ground_truth=""),
        tree=TrajectoryTree(nodes=nodes),
        trajectories=tuple(
            Trajectory(path=i, leaf=leaf, status=status, reward=Reward(score=0.0))
            for i, (leaf, status) in enumerate(ends)
        ),
    )
    advantages = (
        np.array([0, 0, 1, 1, 0, 1, 1], np.float32),
        np.array([0, 0, 2, 2, 0, 2], np.float32),
        np.zeros(3, np.float32),
    )
    return Sample(**{"group": group, "advantages": advantages, **changes})  # type: ignore[arg-type]


def test_paths_are_flattened_in_order_and_failed_ones_left_out() -> None:
    first, second = flatten(Batch(step=0, samples=(forked_sample(),)))
    assert first.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert first.is_trained.tolist() == [False, False, True, True, False, True, True]
    assert first.behaviour.tolist() == [0, 0, -3, -4, 0, -6, -7]
    assert first.versions.tolist() == [0, 0, 30, 40, 0, 60, 70]
    assert second.token_ids.tolist() == [1, 2, 3, 4, 5, 8]
    assert second.advantages.tolist() == [0, 0, 2, 2, 0, 2]


@pytest.mark.parametrize(
    ("advantages", "message"),
    [
        ((np.zeros(7, np.float32),), "1 arrays of advantages for 3"),
        ((np.zeros(6, np.float32),) * 3, "7 tokens have 6 advantages"),
        ((np.full(7, np.nan, np.float32), np.zeros(6, np.float32), np.zeros(3, np.float32)), "not finite"),
    ],
)
def test_a_malformed_sample_is_refused_by_the_name_of_its_prompt(
    advantages: tuple[np.ndarray, ...], message: str
) -> None:
    with pytest.raises(LearnerError, match=f"e0-r3.*{message}"):
        flatten(Batch(step=0, samples=(forked_sample(advantages=advantages),)))


def test_a_row_scores_a_shared_token_once_and_counts_it_for_each_trajectory() -> None:
    sequences = flatten(Batch(step=0, samples=(forked_sample(),)))
    (row,) = pack(sequences, budget=100, weights=[0.25, 0.5])
    assert row.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.structure.depths.tolist() == [0, 1, 2, 3, 4, 5, 6, 5]
    assert row.predictors.tolist() == [1, 2, 4, 5, 4]
    assert row.targets.tolist() == [3, 4, 6, 7, 8]
    assert row.tokens.tolist() == [0, 1, 2, 3, 0, 1, 4]
    assert row.weights.tolist() == [0.25] * 4 + [0.5] * 3
    assert row.behaviour.tolist() == [-3, -4, -6, -7, -3, -4, -8]
    assert row.advantages.tolist() == [1, 1, 1, 1, 2, 2, 2]
    (flat,) = pack(sequences, budget=100, weights=[0.25, 0.5], as_trees=False)
    assert flat.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 8]
    assert flat.predictors.tolist() == [1, 2, 4, 5, 8, 9, 11]
    assert flat.tokens.tolist() == list(range(7))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_balanced_parts_differ_by_at_most_the_largest_item(sizes: list[int], num_parts: int) -> None:
    sums = [sum(sizes[i] for i in part) for part in balance(sizes, num_parts)]
    assert sum(sums) == sum(sizes)
    assert max(sums) - min(sums) <= max(sizes)


def test_normalisations_weigh_tokens_as_their_definitions_say() -> None:
    sequences = [FlatSequence.scored(np.zeros(n, np.int32)) for n in (2, 4, 1)]  # 1, 3 and 0 trained tokens
    assert loss_weights(sequences, TokenMean())[:2] == [1 / 4, 1 / 4]
    assert loss_weights(sequences, SequenceMean())[:2] == [1 / 2, 1 / 6]
    assert loss_weights(sequences, ConstantLength(length=10))[:2] == [1 / 20, 1 / 20]


def test_leaf_weights_make_the_means_weighted_ones() -> None:
    lengths_and_weights = ((2, 0.5), (4, 1.5))  # 1 and 3 trained tokens
    sequences = [replace(FlatSequence.scored(np.zeros(n, np.int32)), leaf_weight=w) for n, w in lengths_and_weights]
    token_mean, sequence_mean, constant = (
        loss_weights(sequences, normalisation, leaf_weighting="inverse_branching")
        for normalisation in (TokenMean(), SequenceMean(), ConstantLength(length=10))
    )
    assert token_mean == [0.5 / 5, 1.5 / 5]
    assert sequence_mean == [1 / 4, 1 / 4]
    assert constant == [0.5 / 20, 1.5 / 20]
    assert loss_weights(sequences, TokenMean()) == [1 / 4, 1 / 4]


def test_minibatches_are_shares_of_prompts_and_none_is_empty() -> None:
    sequences = flatten(Batch(step=0, samples=(forked_sample(),) * 5))
    shares = split_minibatches(sequences, 3)
    assert [sorted({s.sample for s in share}) for share in shares] == [[0, 1], [2, 3], [4]]
    assert [sorted({s.sample for s in share}) for share in split_minibatches(sequences[:2], 3)] == [[0]]


def test_a_trace_becomes_a_chain_that_flattens_to_itself() -> None:
    token_ids = np.arange(8, dtype=np.int32)
    is_trained = np.array([0, 0, 1, 1, 0, 1, 0, 0], dtype=bool)
    sample = sample_of("t0", token_ids=token_ids, is_trained=is_trained)
    assert [n.kind.value for n in sample.group.tree.nodes] == ["prompt", "sampled", "observed", "sampled", "observed"]
    (flat,) = flatten(batch_of(0, [sample]))
    assert flat.token_ids.tolist() == token_ids.tolist()
    assert flat.is_trained.tolist() == is_trained.tolist()
    assert flat.advantages.tolist() == is_trained.tolist()


@pytest.mark.parametrize("mask", [[True, False], [False, False], [False, True, True]])
def test_a_trace_that_cannot_be_trained_is_refused(mask: list[bool]) -> None:
    with pytest.raises(DataError, match="trace t7"):
        sample_of("t7", token_ids=np.arange(2, dtype=np.int32), is_trained=np.array(mask))
