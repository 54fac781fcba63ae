"""Conversation: what one client holds; a path of a tree, and the points of its history from which it can go on.

messages   system, user | assistant | tool | assistant | user | assistant
points                  a           b      a           b      a           b     (a)sked, (b)ehind the answer
"""

from dataclasses import dataclass, field

from actors.gateway.errors import ApiError
from actors.gateway.traffic_tree import TrafficTree
from engine.tree import Path
from engine.types import Reward, ToolCall


@dataclass(frozen=True, slots=True)
class Point:
    """A prefix of the messages whose tokens are known."""

    digest: bytes
    num_messages: int
    start: int
    """Tokens of the path before the turn that ends here; `length` where none does."""
    length: int
    """Tokens of the path up to here."""
    is_answer: bool
    """Behind a turn of the policy; otherwise before one, and what is asked here again is sampled again."""
    calls: tuple[ToolCall, ...] = ()
    """What the turn asked for."""
    call_ids: tuple[str, ...] = ()
    """What the client knows these calls by."""


@dataclass(eq=False, slots=True)
class Conversation:
    """One conversation that has not ended. Changed by the store and by the turn that is under way."""

    name: str
    tenant: str
    scope: str
    tree: TrafficTree
    path: Path
    points: list[Point] = field(default_factory=list[Point])
    """In the order of the history."""
    touched_at: float = 0.0
    """On the loop's clock."""
    is_busy: bool = False
    """A turn is being sampled."""
    is_finished: bool = False
    """The client says nothing more; the reward may still come."""
    is_anonymous: bool = False
    """The client did not name it: it goes on by its history alone."""
    is_over: bool = False
    """It was ended; a turn that is under way says nothing more."""
    is_off_policy: bool = False
    """Part of it was sampled as nothing that is trained: another temperature, for example."""
    num_turns: int = 0
    num_rewrites: int = 0
    """Times the client sent another history than the one that was recorded."""
    reward: Reward | None = None

    def match(self, prefixes: list[bytes]) -> Point | None:
        """The longest recorded prefix of a history; a point before a turn counts where the history ends there."""
        for point in reversed(self.points):
            is_there = point.num_messages <= len(prefixes) and prefixes[point.num_messages - 1] == point.digest
            if is_there and (point.is_answer != (point.num_messages == len(prefixes))):
                return point
        return None

    @property
    def is_whole(self) -> bool:
        """Whether its last turn came to its end, and the client may have heard all of it."""
        return bool(self.points) and self.points[-1].is_answer

    @property
    def may_make_room(self) -> bool:
        """Whether it may be ended for another one: a client that does not name it does not end it either."""
        return self.is_anonymous and self.reward is None and not self.is_busy

    def check_idle(self) -> None:
        """Raises `ApiError` 409 where a turn is under way."""
        if self.is_busy:
            raise ApiError(409, f"a turn of {self.name!r} is under way", code="conversation_busy")

    def check_free(self) -> None:
        """Raises `ApiError` 409 where it cannot go on now, or at all."""
        self.check_idle()
        if self.is_finished:
            raise ApiError(409, f"{self.name!r} is finished", code="conversation_finished")

    def stands_at(self, point: Point) -> bool:
        """Whether nothing was sampled or said behind this point."""
        return point is self.points[-1] and point.length == self.path.length

    def up_to(self, point: Point) -> list[Point]:
        """The points of the history that ends at one of them."""
        return self.points[: self.points.index(point) + 1]
