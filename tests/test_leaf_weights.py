"""Weights by inverse branching: what a fork divides, and what it never changes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.types import TrajectoryGroup
from learner.algorithms.leaf_weights import inverse_branching
from tests.credit_trees import DONE, FAILED, O, P, S, alive, group, groups, node


def shares(g: TrajectoryGroup) -> dict[int, Fraction]:
    """Every trainable trajectory's share of its path from the prompt, handed down in equal parts at each fork."""
    found: dict[int, Fraction] = {}

    def hand_down(place: int, share: Fraction) -> None:
        ends = [i for i in alive(g) if g.trajectories[i].leaf == place]
        children = living_children(g, place)
        for i in ends:
            found[i] = share / (len(ends) + len(children))
        for child in children:
            hand_down(child, share / (len(ends) + len(children)))

    for child in living_children(g, 0):
        hand_down(child, Fraction(1))
    return found | {i: Fraction(1) for i in alive(g) if g.trajectories[i].leaf == 0}


def living_children(g: TrajectoryGroup, place: int) -> list[int]:
    """The nodes behind a node through which a trainable trajectory goes."""
    used = {node for i in alive(g) for node in g.tree.path_to(g.trajectories[i].leaf)}
    return [c for c, n in enumerate(g.tree.nodes) if n.parent == place and c in used]


@given(groups())
def test_a_fork_divides_the_share_of_its_path_among_its_branches(g: TrajectoryGroup) -> None:
    expected = shares(g)
    weights = inverse_branching(g)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, [float(expected.get(i, 0)) for i in range(len(g.trajectories))], rtol=1e-12)


@given(groups())
def test_the_sum_is_the_number_of_paths_from_the_prompt_and_failed_ones_weigh_nothing(g: TrajectoryGroup) -> None:
    weights = inverse_branching(g)
    assert all((weights[i] > 0) == (i in alive(g)) for i in range(len(g.trajectories)))
    at_prompt = sum(g.trajectories[i].leaf == 0 for i in alive(g))
    assert weights.sum() == pytest.approx(len(living_children(g, 0)) + at_prompt, rel=1e-12)


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
    assert forked((1, DONE), (4, DONE), (5, DONE)) == [1.0, 0.5, 0.5]


def test_the_share_of_a_failed_branch_goes_to_its_sibling() -> None:
    assert forked((1, DONE), (4, FAILED), (5, DONE)) == [1.0, 0.0, 1.0]


def test_a_trajectory_that_ends_where_another_goes_on_is_a_branch_of_its_own() -> None:
    # the third one ends with the observation behind which the other two go on
    assert forked((1, DONE), (4, DONE), (5, DONE), (3, DONE)) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])


def test_a_group_of_failures_weighs_nothing() -> None:
    assert forked((1, FAILED), (4, FAILED)) == [0.0, 0.0]
