"""Weights by inverse branching: what a fork divides, and what it never changes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.types import TrajectoryGroup
from learner.leaf_weights import inverse_branching
from tests.credit_trees import DONE, FAILED, O, P, S, alive, group, groups, node


def shares(g: TrajectoryGroup) -> dict[int, Fraction]:
    """Every trainable trajectory's share of 1, handed down from the prompt in equal parts at each fork."""
    found: dict[int, Fraction] = {}

    def hand_down(place: int, share: Fraction) -> None:
        ends = [i for i in alive(g) if g.trajectories[i].leaf == place]
        children = [
            c
            for c, n in enumerate(g.tree.nodes)
            if n.parent == place and any(c in g.tree.path_to(g.trajectories[i].leaf) for i in alive(g))
        ]
        for i in ends:
            found[i] = share / (len(ends) + len(children))
        for child in children:
            hand_down(child, share / (len(ends) + len(children)))

    if alive(g):
        hand_down(0, Fraction(1))
    return found


@given(groups())
def test_a_fork_divides_the_share_of_its_path_among_its_branches(g: TrajectoryGroup) -> None:
    expected = shares(g)
    assert sum(expected.values()) == bool(expected)
    weights = inverse_branching(g)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(
        weights, [float(len(expected) * expected.get(i, 0)) for i in range(len(g.trajectories))], rtol=1e-12
    )


@given(groups())
def test_the_mean_over_trainable_trajectories_is_one_and_failed_ones_weigh_nothing(g: TrajectoryGroup) -> None:
    weights = inverse_branching(g)
    assert all((weights[i] > 0) == (i in alive(g)) for i in range(len(g.trajectories)))
    if alive(g):
        assert weights[alive(g)].mean() == pytest.approx(1.0, rel=1e-12)


@given(st.lists(st.sampled_from([DONE, FAILED]), min_size=1, max_size=8))
def test_a_tree_that_forks_at_the_prompt_alone_has_equal_weights(statuses: list) -> None:
    nodes = [node(-1, P, 2), *(node(0, S, 2) for _ in statuses)]
    g = group(nodes, [(i, 0.0, status) for i, status in enumerate(statuses, 1)])
    np.testing.assert_allclose(inverse_branching(g), [float(s is DONE) for s in statuses])


def forked(*ends: tuple[int, object]) -> list[float]:
    """Two initial paths; the second goes on as two behind an observation."""
    nodes = [node(-1, P, 2), node(0, S, 5), node(0, S, 3), node(2, O, 2), node(3, S, 4), node(3, S, 4)]
    return inverse_branching(group(nodes, [(leaf, 0.0, status) for leaf, status in ends])).tolist()  # type: ignore[misc]


def test_the_example_of_the_docstring_holds() -> None:
    assert forked((1, DONE), (4, DONE), (5, DONE)) == [1.5, 0.75, 0.75]


def test_the_share_of_a_failed_branch_goes_to_its_sibling() -> None:
    assert forked((1, DONE), (4, FAILED), (5, DONE)) == [1.0, 0.0, 1.0]


def test_a_trajectory_that_ends_where_another_goes_on_is_a_branch_of_its_own() -> None:
    # the third one ends with the observation behind which the other two go on
    assert forked((1, DONE), (4, DONE), (5, DONE), (3, DONE)) == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])


def test_a_group_of_failures_weighs_nothing() -> None:
    assert forked((1, FAILED), (4, FAILED)) == [0.0, 0.0]
