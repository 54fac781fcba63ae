"""Granting: which of the wanted forks get a place. A separate choice from wanting one.

A proposal holds only what the branch would inherit, so a grant may come late: the parent streams on meanwhile, and
the prefix stays in the radix cache.
"""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Protocol

from engine.config import Fraction, Positive, Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A wanted fork of one path."""

    prompt_id: str
    path: int
    length: int
    """Tokens of the path the branch inherits."""
    observation: int
    """Which tool result of the path, from 1: the logical time of the proposal."""
    score: float


class Granter(Protocol):
    """Decides for one cohort; pure bookkeeping, no clock and no randomness."""

    def restore(self, proposal: Proposal, *, place: int) -> None:
        """An earlier process had it as its `place`-th proposal, and had not granted it when it ended."""
        ...

    def propose(self, proposal: Proposal) -> list[Proposal]:
        """A fork is wanted; returns those (of any tree) that are granted now, best first."""
        ...

    def exhaust(self, prompt_id: str, room: int) -> list[Proposal]:
        """The tree has no live path and `room` places left: what of its own is granted before it is filled up."""
        ...

    def withdraw(self, prompt_id: str) -> None:
        """The tree takes no more branches."""
        ...


class Paper(Section, frozen=True, tag_field="kind", tag="paper"):
    """Each tree for itself, first come, first served."""

    def granter(self, *, num_proposed: int = 0) -> Granter:
        """`num_proposed` counts the proposals to earlier processes."""
        return FirstCome()


class Ranked(Section, frozen=True, tag_field="kind", tag="ranked"):
    """By score across the cohort: of every `window` proposals the best `fraction` is granted; the rest stays in the
    pool, and a tree that runs dry takes its own best ones from there before fresh paths are started."""

    window: Positive = 8
    """Proposals that are ranked together."""
    fraction: Fraction = 0.5
    """Share of them that is granted."""

    def granter(self, *, num_proposed: int = 0) -> Granter:
        """`num_proposed` counts the proposals to earlier processes: the window that was open goes on."""
        return ByRank(window=self.window, fraction=self.fraction, num_proposed=num_proposed)


class Late(Section, frozen=True, tag_field="kind", tag="late"):
    """Each tree for itself, when all its paths have ended: the places that are left are dealt out among its wanted
    forks, one each in turn, behind the latest results first: there a branch has the fewest calls ahead of it.

    Where a fork is wanted depends on what its branches inherit; how many places it gets also on how many others the
    tree wants, later ones of the same path among them. That moves weight between prefixes, and is not corrected for."""

    def granter(self, *, num_proposed: int = 0) -> Granter:
        """`num_proposed` counts the proposals to earlier processes."""
        return Dealer()


AnyGranting = Paper | Ranked | Late


class FirstCome:
    """Granter of `paper`: every proposal at once."""

    def restore(self, proposal: Proposal, *, place: int) -> None:
        pass

    def propose(self, proposal: Proposal) -> list[Proposal]:
        return [proposal]

    def exhaust(self, prompt_id: str, room: int) -> list[Proposal]:
        return []

    def withdraw(self, prompt_id: str) -> None:
        pass


class ByRank:
    """Granter of `ranked`.

    >>> def p(name: str, score: float) -> Proposal:
    ...     return Proposal(prompt_id=name, path=0, length=9, observation=1, score=score)
    >>> granter = ByRank(window=2, fraction=0.5)
    >>> granter.propose(p("a", 0.1)), [q.prompt_id for q in granter.propose(p("b", 0.9))]
    ([], ['b'])
    >>> [q.score for q in granter.exhaust("a", room=4)]
    [0.1]
    """

    def __init__(self, *, window: int, fraction: float, num_proposed: int = 0) -> None:
        self._window = window
        self._fraction = fraction
        self._num_proposed = num_proposed
        self._pool: dict[Proposal, int] = {}
        """With their places: the order in which they came."""

    def restore(self, proposal: Proposal, *, place: int) -> None:
        self._pool[proposal] = place

    def propose(self, proposal: Proposal) -> list[Proposal]:
        self._num_proposed += 1
        self._pool[proposal] = self._num_proposed
        if self._num_proposed % self._window:
            return []
        return self._best(list(self._pool), round(self._window * self._fraction))

    def exhaust(self, prompt_id: str, room: int) -> list[Proposal]:
        return self._best([p for p in self._pool if p.prompt_id == prompt_id], room)

    def withdraw(self, prompt_id: str) -> None:
        self._pool = {p: place for p, place in self._pool.items() if p.prompt_id != prompt_id}

    def _best(self, candidates: list[Proposal], count: int) -> list[Proposal]:
        """The `count` best, ties by age; they leave the pool."""
        chosen = sorted(candidates, key=lambda p: (-p.score, self._pool[p]))[:count]
        for proposal in chosen:
            del self._pool[proposal]
        return chosen


class Dealer:
    """Granter of `late`.

    >>> def p(observation: int, score: float) -> Proposal:
    ...     return Proposal(prompt_id="a", path=0, length=9 * observation, observation=observation, score=score)
    >>> granter = Dealer()
    >>> [granter.propose(q) for q in (p(1, 0.9), p(2, 0.1), p(2, 0.3))]
    [[], [], []]
    >>> [(q.observation, q.score) for q in granter.exhaust("a", room=4)]
    [(2, 0.3), (2, 0.1), (1, 0.9), (2, 0.3)]
    """

    def __init__(self) -> None:
        self._pools: dict[str, list[Proposal]] = {}

    def restore(self, proposal: Proposal, *, place: int) -> None:
        self.propose(proposal)

    def propose(self, proposal: Proposal) -> list[Proposal]:
        self._pools.setdefault(proposal.prompt_id, []).append(proposal)
        return []

    def exhaust(self, prompt_id: str, room: int) -> list[Proposal]:
        # By path last, so that the order in which paths moved decides nothing.
        pool = sorted(self._pools.pop(prompt_id, []), key=lambda p: (-p.observation, -p.score, p.path))
        return list(islice(cycle(pool), room))

    def withdraw(self, prompt_id: str) -> None:
        self._pools.pop(prompt_id, None)
