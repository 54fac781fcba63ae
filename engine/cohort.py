"""Cohort: the trees admitted together; they share budgets and one order of grants.

In arrival order a proposal is granted when it comes. In logical order (deterministic runs) the proposals of round r,
those behind the r-th tool result of their paths, are held until no live path can still propose in a round up to r, and
are then taken by (round, tree, path): the outcome depends on no timing.
"""

from collections.abc import Iterable
from typing import Protocol

from engine.budget import Account
from engine.granting import AnyGranting, Proposal, Ranked
from engine.outlook import Outlook


class Member(Protocol):
    """A tree as its cohort sees it."""

    @property
    def prompt_id(self) -> str: ...

    @property
    def rounds(self) -> Iterable[int]:
        """For each live path, the last round in which it can no longer propose; (0,) before all are started."""
        ...

    @property
    def is_idle(self) -> bool:
        """No live path, and not finished."""
        ...

    @property
    def room(self) -> int:
        """Places left under M and the cohort's budget."""
        ...

    def rank(self, proposal: Proposal, *, place: int) -> None:
        """Write down that a proposal of its own entered the ranking."""
        ...

    def grant(self, proposal: Proposal) -> None:
        """Start the branches of a granted proposal, as far as there is room."""
        ...

    def fill(self) -> None:
        """Nothing is held for this tree any more: fill it up or finish."""
        ...


class Cohort:
    """Budgets and grants of the trees that were admitted together."""

    def __init__(
        self,
        number: int,
        *,
        size: int,
        granting: AnyGranting,
        leaves: Account,
        tool_calls: Account,
        is_logical: bool,
        num_ranked: int = 0,
        outlook: Outlook | None = None,
    ) -> None:
        """`size` is how many trees will join; only logical order across trees waits for all of them. `num_ranked`
        proposals entered the ranking in earlier processes. The trees' requests are ordered by `outlook`, and without
        one they go first come, first served."""
        self.number = number
        self.outlook = outlook
        self.leaves = leaves
        self.tool_calls = tool_calls
        self._size = size
        self._joined = 0
        self._granter = granting.granter(num_proposed=num_ranked)
        self.num_ranked = num_ranked
        self.is_logical = is_logical
        self._is_shared = isinstance(granting, Ranked)
        self._members: dict[str, Member] = {}
        self._held: list[Proposal] = []

    def join(self, member: Member) -> None:
        """A tree begins (or goes on after a resume)."""
        self._members[member.prompt_id] = member
        self._joined += 1

    def seal(self) -> None:
        """No further tree will join: the data ended."""
        self._size = self._joined
        self.advance()

    def leave(self, member: Member) -> None:
        """A tree is finished."""
        self.abandon(member)
        self.advance()

    def abandon(self, member: Member) -> None:
        """A tree was cancelled: it takes part in nothing any more, and nothing is decided because of it."""
        self._members.pop(member.prompt_id, None)
        self._held = [p for p in self._held if p.prompt_id != member.prompt_id]
        self._granter.withdraw(member.prompt_id)

    @property
    def is_over(self) -> bool:
        """Trees have joined, and all of them have left."""
        return self._joined > 0 and not self._members

    def restore(self, proposal: Proposal, *, place: int) -> None:
        """A path wanted a fork in an earlier process, which ranked it and granted it to nobody."""
        self._granter.restore(proposal, place=place)

    def propose(self, proposal: Proposal) -> None:
        """A path wants a fork."""
        if self.is_logical:
            self._held.append(proposal)
            self.advance(self._members.get(proposal.prompt_id))
        else:
            self._decide(proposal)

    def advance(self, mover: Member | None = None) -> None:
        """A path moved or ended, of tree `mover` (None: of any): decide what is decidable now, then let idle trees fill
        up."""
        for scope in self._scopes(mover):
            while ready := self._ready(scope):
                for proposal in ready:
                    self._held.remove(proposal)
                    self._decide(proposal)
            self._fill(scope)

    def _scopes(self, mover: Member | None) -> list[list[Member]]:
        """Sets of trees whose grants depend on each other's timing, and on that of `mover`."""
        if self.is_logical and self._is_shared:
            return [sorted(self._members.values(), key=lambda m: m.prompt_id)]
        if mover is not None:
            return [[mover]] if mover.prompt_id in self._members else []
        return [[m] for m in sorted(self._members.values(), key=lambda m: m.prompt_id)]

    def _ready(self, scope: list[Member]) -> list[Proposal]:
        names = {member.prompt_id for member in scope}
        held = [p for p in self._held if p.prompt_id in names]
        if not held or (len(scope) > 1 and self._joined < self._size):
            return []
        decided = min((r for member in scope for r in member.rounds), default=None)
        first = min(p.observation for p in held)
        if decided is not None and first > decided:
            return []
        return sorted((p for p in held if p.observation == first), key=lambda p: (p.prompt_id, p.path))

    def _fill(self, scope: list[Member]) -> None:
        if self.is_logical and self._is_shared and self._joined < self._size:
            return
        if not all(member.is_idle for member in scope):
            return
        for member in scope:
            for proposal in self._granter.exhaust(member.prompt_id, member.room):
                member.grant(proposal)
            if member.is_idle:
                member.fill()

    def _decide(self, proposal: Proposal) -> None:
        if self._is_shared:
            self.num_ranked += 1
            self._members[proposal.prompt_id].rank(proposal, place=self.num_ranked)
        for granted in self._granter.propose(proposal):
            if granted.prompt_id in self._members:
                self._members[granted.prompt_id].grant(granted)
