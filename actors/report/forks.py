"""Forks: where they were considered, wanted and granted, and what a branch was worth against a path from the prompt.

Two trajectories that share a prefix teach something about what follows it only where they end differently. So the worth
of a fork is whether its branch got another reward than the path it left (a *mixed* pair), and its price the tool calls
that the branch had to execute itself. The comparison is with pairs of paths of the same tree that both began at the
prompt; each tree enters it with the weight of its forks, so that hard prompts count as much on both sides. The
intervals resample trees (see `intervals`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from actors.report.intervals import UNKNOWN, Estimate, Float64, divide, estimates, resampled, wilson
from actors.report.record import GrownTree
from engine.tree import Path
from engine.types import RolloutStatus, Trajectory

MAX_PLACES = 10


class Place(NamedTuple):
    """Where a branch may start: behind the n-th result of a path, by the tool that wrote it."""

    observation: int
    """From 1; 0 where a branch starts before any result."""
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """One branch that was granted."""

    place: Place
    is_mixed: bool | None
    """Whether its reward differs from the parent's; None where one of the two failed."""
    num_executed: int
    """Calls that really ran for it, behind the fork."""
    num_inherited: int
    """Tokens behind the prompt that it did not have to sample or read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceWorth:
    """All forks of some places."""

    places: frozenset[Place]
    num_considered: int
    num_wanted: int
    num_granted: int
    mixed: Estimate
    """Share of its forks with a mixed outcome."""
    executed: float
    """Calls a branch executed itself, on average; NaN without forks."""
    inherited: float
    """Tokens a branch inherited behind the prompt, on average."""

    @property
    def calls_per_mixed(self) -> float:
        """Executed calls for each branch that ended differently."""
        return self.executed / self.mixed.value if self.mixed.value else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class RootPairs:
    """Pairs of paths that began at the prompt, in trees with forks."""

    mixed: Estimate
    """Share of pairs with a mixed outcome; each tree weighs as much as it has forks."""
    executed: float
    """Calls a path from the prompt executed, on average over those of trees with forks."""

    @property
    def calls_per_mixed(self) -> float:
        return self.executed / self.mixed.value if self.mixed.value else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkReport:
    """What forks did in a run."""

    places: list[PlaceWorth]
    """One place each, in the order of observations; of many, the `MAX_PLACES` with the most forks or questions."""
    others: PlaceWorth | None
    """All places that are not among these, together."""
    total: PlaceWorth
    roots: RootPairs
    price: Estimate
    """Calls for each mixed pair, by forks over from the prompt: below 1 forks are the cheaper way to one."""


def report_forks(trees: Sequence[GrownTree]) -> ForkReport:
    """Count and compare all forks of these trees."""
    forks = [forks_of(tree) for tree in trees]
    considered = [[(place_at(tree.paths[c.path], c.length), c.is_wanted) for c in tree.considered] for tree in trees]
    places = {fork.place for tree in forks for fork in tree} | {place for tree in considered for place, _ in tree}
    sizes = Counter(place for tree in considered for place, _ in tree) + Counter(
        f.place for tree in forks for f in tree
    )
    pairs = _root_pairs(trees, [len(tree) for tree in forks])
    kept = sorted(sorted(places), key=lambda place: -sizes[place])[:MAX_PLACES]
    others = frozenset(places.difference(kept))
    return ForkReport(
        places=[_worth(frozenset({place}), forks, considered) for place in sorted(kept)],
        others=_worth(others, forks, considered) if others else None,
        total=_worth(frozenset(places), forks, considered),
        roots=RootPairs(mixed=_mean_share(*pairs.columns(1)), executed=_quotient(*pairs.columns(0))),
        price=_price(forks, pairs),
    )


def place_at(path: Path, length: int) -> Place:
    """The place of the position `length` tokens into a path."""
    passed = [mark for mark in path.marks if mark.length <= length]
    if not passed or not passed[-1].num_calls:
        return Place(len(passed), "")
    return Place(len(passed), path.calls[passed[-1].num_calls - 1].name)


def forks_of(tree: GrownTree) -> list[Fork]:
    """The branches of one tree, in the order in which they were granted."""
    found: list[Fork] = []
    for path, trajectory in zip(tree.paths, tree.group.trajectories, strict=True):
        if path.forked_from < 0:
            continue
        found.append(
            Fork(
                place=place_at(path, path.fork_length),
                is_mixed=is_mixed(trajectory, tree.group.trajectories[path.forked_from]),
                num_executed=_num_executed(path),
                num_inherited=path.fork_length - path.prompt_length,
            )
        )
    return found


def is_mixed(one: Trajectory, other: Trajectory) -> bool | None:
    """Whether two trajectories were scored differently; None where one of them failed."""
    if RolloutStatus.FAILED in (one.status, other.status):
        return None
    return one.reward.score != other.reward.score


def _num_executed(path: Path) -> int:
    """Calls that ran for this very path, behind its fork."""
    inherited = [mark.num_calls for mark in path.marks if mark.length <= path.fork_length]
    first = inherited[-1] if inherited else 0
    return sum(result.was_executed for index, result in path.results.items() if index >= first)


def _worth(places: frozenset[Place], forks: list[list[Fork]], considered: list[list[tuple[Place, bool]]]) -> PlaceWorth:
    here = [[fork for fork in tree if fork.place in places] for tree in forks]
    asked = [is_wanted for tree in considered for place, is_wanted in tree if place in places]
    granted = [fork for tree in here for fork in tree]
    return PlaceWorth(
        places=places,
        num_considered=len(asked),
        num_wanted=sum(asked),
        num_granted=len(granted),
        mixed=_share([[fork.is_mixed for fork in tree] for tree in here]),
        executed=_mean(fork.num_executed for fork in granted),
        inherited=_mean(fork.num_inherited for fork in granted),
    )


def _share(outcomes: list[list[bool | None]]) -> Estimate:
    """Of the known outcomes, by tree."""
    known = [[o for o in tree if o is not None] for tree in outcomes]
    counts = np.array([[len(tree), sum(tree)] for tree in known if tree], dtype=np.float64).reshape(-1, 2)
    return _mean_share(counts[:, 1:], counts[:, :1])


def _mean_share(mixed_G1: Float64, counts_G1: Float64) -> Estimate:
    """A share with its interval; where every draw is alike (all trees mixed, or none), Wilson's for as many trees."""
    has_any_G = counts_G1[:, 0] > 0
    if not has_any_G.any():
        return UNKNOWN
    (share,) = estimates(*resampled(mixed_G1[has_any_G], counts_G1[has_any_G]))
    return wilson(share.value, int(has_any_G.sum())) if share.low == share.high else share


def _quotient(sums_G1: Float64, counts_G1: Float64) -> float:
    return float(divide(sums_G1.sum(0), counts_G1.sum(0))[0])


@dataclass(frozen=True, slots=True)
class _Table:
    """Sums and counts of two quantities by tree, `(G, 2)`: calls executed, and mixed pairs."""

    sums: Float64
    counts: Float64

    def columns(self, column: int) -> tuple[Float64, Float64]:
        return self.sums[:, column : column + 1], self.counts[:, column : column + 1]


def _root_pairs(trees: Sequence[GrownTree], num_forks: Sequence[int]) -> _Table:
    """Of paths from the prompt, each tree with the weight of its forks."""
    sums_G2, counts_G2 = np.zeros((2, len(trees), 2))
    for row, (tree, weight) in enumerate(zip(trees, num_forks, strict=True)):
        roots = [path.number for path in tree.paths if path.forked_from < 0]
        pairs = combinations([tree.group.trajectories[number] for number in roots], 2)
        known = [outcome for one, other in pairs if (outcome := is_mixed(one, other)) is not None]
        sums_G2[row, 0] = weight * _mean(_num_executed(tree.paths[number]) for number in roots)
        sums_G2[row, 1] = weight * _mean(known) if known else 0.0
        counts_G2[row] = weight, weight if known else 0
    return _Table(sums_G2, counts_G2)


def _price(forks: list[list[Fork]], pairs: _Table) -> Estimate:
    """Calls for each mixed pair by forks, over those by pairs from the prompt."""
    sums_G2, counts_G2 = np.zeros((2, len(forks), 2))
    for row, tree in enumerate(forks):
        known = [fork.is_mixed for fork in tree if fork.is_mixed is not None]
        sums_G2[row], counts_G2[row] = (sum(f.num_executed for f in tree), sum(known)), (len(tree), len(known))
    has_forks_G = counts_G2[:, 0] > 0
    sums_G4 = np.hstack([sums_G2, pairs.sums])[has_forks_G]
    counts_G4 = np.hstack([counts_G2, pairs.counts])[has_forks_G]
    if not len(sums_G4):
        return UNKNOWN
    means_4, draws_B4 = resampled(sums_G4, counts_G4)
    prices = [divide(divide(m[:, :1], m[:, 1:2]), divide(m[:, 2:3], m[:, 3:])) for m in (means_4[None], draws_B4)]
    return estimates(prices[0][0], prices[1])[0]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")
