"""TreeView: one rollout tree as a page draws it, blocks of text between forks, and what each path came to."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal

LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Nats: a token is of level 0 below the first bound, of level 5 from the last one on."""


def level_of(entropy: float) -> int:
    """How strongly a token is coloured."""
    return bisect_right(LEVELS, entropy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token as the page shows it."""

    text: str
    entropy: float = 0.0
    probability: float = 1.0
    version: int = 0
    is_probe: bool = False
    """Among the k tokens behind a tool result."""

    @property
    def level(self) -> int:
        return level_of(self.entropy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The entropy monitor spoke: behind a result, about a branch at one position."""

    entropy: float
    baseline: float
    score: float
    coin: float
    is_wanted: bool
    is_granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of tokens that one side wrote, between two places where the monitor spoke."""

    kind: Literal["sampled", "observed"]
    start: int
    """Tokens behind the prompt before it."""
    tokens: list[Token]
    tool: str = ""
    """Whose result it is."""
    looks: list[Look] = field(default_factory=list[Look])
    """About a branch at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What a trajectory came to."""

    path: int
    status: str
    reward: float
    is_correct: bool
    reason: str
    advantage: float | None
    """Of its own tokens; None without a learning signal."""
    num_tool_calls: int


@dataclass(slots=True, kw_only=True)
class Block:
    """The text between two places where paths part."""

    path: int
    """The first path through it, which is the one that wrote it."""
    paths: list[int]
    """All paths through it."""
    is_branch: bool
    """Whether it begins with a branch, rather than going on with the path before it."""
    parts: list[Part] = field(default_factory=list[Part])
    leaves: list[Leaf] = field(default_factory=list[Leaf])
    children: list["Block"] = field(default_factory=list["Block"])

    @property
    def depth(self) -> int:
        """Blocks on the longest way from here to a leaf."""
        return 1 + max((child.depth for child in self.children), default=0)

    def all_leaves(self) -> list[Leaf]:
        """What all trajectories through it came to, from top to bottom."""
        return self.leaves + [leaf for child in self.children for leaf in child.all_leaves()]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeView:
    """The tree of one prompt."""

    prompt_id: str
    question: str
    ground_truth: str
    prompt_text: str
    trained_in: int | None
    version: int
    num_forks: int
    length: int
    """Tokens behind the prompt of its longest path."""
    roots: list[Block]
