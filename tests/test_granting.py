"""Granting: first come or by rank; a proposal is granted at most once, and the best ones first."""

from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine.branching import Arpo
from engine.granting import FirstCome, Late, Paper, Proposal, Ranked
from engine.rollout_config import RolloutConfig


def proposal(name: str, score: float, *, path: int = 0, observation: int = 1) -> Proposal:
    return Proposal(prompt_id=name, path=path, length=9, observation=observation, score=score)


def test_late_granting_deals_out_single_places() -> None:
    with pytest.raises(ValueError, match="branches must be 1"):
        RolloutConfig(granting=Late(), branching=Arpo(branches=2))


def test_paper_grants_every_proposal_when_it_comes() -> None:
    granter = Paper().granter()
    assert isinstance(granter, FirstCome)
    first = proposal("a", -1.0)
    assert granter.propose(first) == [first]
    assert granter.exhaust("a", room=3) == []
    granter.withdraw("a")


def test_ranked_grants_the_best_share_of_every_window_best_first() -> None:
    granter = Ranked(window=4, fraction=0.5).granter()
    scores = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.3}
    granted = [granter.propose(proposal(name, score)) for name, score in scores.items()]
    assert granted[:3] == [[], [], []]
    assert [p.prompt_id for p in granted[3]] == ["b", "c"]
    # The rest stays in the pool, and competes with the next window.
    later = [granter.propose(proposal(name, score)) for name, score in (("e", 0.2), ("f", 0.0), ("g", 0.0), ("h", 0.0))]
    assert [p.prompt_id for p in later[3]] == ["d", "e"]


def test_a_tree_that_runs_dry_takes_its_own_best_and_no_one_elses() -> None:
    granter = Ranked(window=8).granter()
    for name, score in (("a", 0.1), ("b", 0.9), ("a", 0.3), ("a", 0.2)):
        assert granter.propose(proposal(name, score)) == []
    assert [p.score for p in granter.exhaust("a", room=2)] == [0.3, 0.2]
    assert [p.score for p in granter.exhaust("a", room=2)] == [0.1]
    assert granter.exhaust("a", room=2) == []
    assert [p.prompt_id for p in granter.exhaust("b", room=0)] == []


def test_proposals_of_a_tree_that_has_left_are_never_granted() -> None:
    granter = Ranked(window=2, fraction=1.0).granter()
    granter.propose(proposal("a", 0.9))
    granter.withdraw("a")
    assert [p.prompt_id for p in granter.propose(proposal("b", 0.1))] == ["b"]


def test_equal_scores_are_taken_by_age() -> None:
    granter = Ranked(window=3, fraction=1 / 3).granter()
    granter.propose(proposal("old", 0.5))
    granter.propose(proposal("young", 0.5))
    assert [p.prompt_id for p in granter.propose(proposal("low", 0.1))] == ["old"]


@given(
    scores=st.lists(st.floats(-1, 1), max_size=40),
    window=st.integers(1, 9),
    fraction=st.floats(0, 1),
)
def test_every_proposal_is_granted_at_most_once_and_the_share_is_hard(
    scores: list[float], window: int, fraction: float
) -> None:
    granter = Ranked(window=window, fraction=fraction).granter()
    proposals = [proposal(f"t{i % 3}", score, path=i) for i, score in enumerate(scores)]
    granted = [p for each in proposals for p in granter.propose(each)]
    assert len({p.path for p in granted}) == len(granted)
    assert len(granted) <= len(scores) // window * round(window * fraction)
    rest = [p for name in ("t0", "t1", "t2") for p in granter.exhaust(name, room=len(scores))]
    assert sorted(p.path for p in [*granted, *rest]) == list(range(len(scores))), "none is lost before its tree ends"


@given(
    scores=st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=30),
    stop=st.integers(0, 30),
    window=st.integers(1, 6),
)
def test_a_restored_ranking_grants_what_the_old_one_would_have(scores: list[float], stop: int, window: int) -> None:
    proposals = [proposal(f"p{number}", score) for number, score in enumerate(scores)]
    whole = Ranked(window=window).granter()
    before = [whole.propose(one) for one in proposals[:stop]]
    granted = {one for found in before for one in found}
    again = Ranked(window=window).granter(num_proposed=len(before))
    for place, one in reversed(list(enumerate(proposals[:stop], 1))):
        if one not in granted:
            again.restore(one, place=place)
    assert [again.propose(one) for one in proposals[stop:]] == [whole.propose(one) for one in proposals[stop:]]


def test_late_grants_nothing_while_a_tree_lives_and_then_deals_the_places_out_latest_results_first() -> None:
    granter = Late().granter()
    first, last = proposal("a", 0.9, observation=1), proposal("a", 0.1, observation=3)
    other = proposal("b", 0.9, observation=3)
    assert [granter.propose(p) for p in (first, last, other)] == [[], [], []]
    assert granter.exhaust("a", room=3) == [last, first, last]
    assert granter.exhaust("a", room=3) == []
    granter.withdraw("b")
    assert granter.exhaust("b", room=3) == []


@given(
    where=st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1)), min_size=1, max_size=20),
    room=st.integers(0, 40),
    seed=st.integers(0, 9),
)
def test_late_depends_on_no_order_and_deals_evenly(where: list[tuple[int, float]], room: int, seed: int) -> None:
    proposals = [proposal("a", score, path=i, observation=n) for i, (n, score) in enumerate(where)]
    shuffled = Random(seed).sample(proposals, k=len(proposals))
    granter, other = Late().granter(), Late().granter()
    for one, two in zip(proposals, shuffled, strict=True):
        granter.propose(one)
        other.restore(two, place=1)  # what a resumed run does
    granted = granter.exhaust("a", room=room)
    assert granted == other.exhaust("a", room=room)
    assert len(granted) == room
    counts = [granted.count(p) for p in sorted(proposals, key=lambda p: (-p.observation, -p.score))]
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True), "what is left over goes to the latest"
