"""The tree as a picture: one row a trajectory, tokens from left to right, coloured by entropy, branches hanging below.

Places are shares of the width, from 0 at the end of the prompt to 1 at the end of the longest path; rows count from 0.
"""

from dataclasses import dataclass
from itertools import groupby

from actors.report.tree_view import Block, Leaf, Look, Part, Token, TreeView


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring tokens that look alike."""

    left: float
    width: float
    kind: str
    """`o` for a tool result, else `h0` to `h5` for the level of entropy."""
    path: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trajectory, from where it left another one."""

    leaf: Leaf
    runs: list[Run]
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A vertical line from a fork down to the row of the branch."""

    left: float
    top: int
    bottom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A place where the monitor spoke."""

    left: float
    row: int
    look: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Dendrogram:
    """All of it."""

    rows: list[Row]
    drops: list[Drop]
    dots: list[Dot]


def dendrogram(view: TreeView) -> Dendrogram:
    """The picture of one tree."""
    drawing = _Drawing(max(view.length, 1))
    for root in view.roots:
        drawing.add(root)
    return Dendrogram(rows=drawing.rows, drops=drawing.drops, dots=drawing.dots)


class _Drawing:
    def __init__(self, length: int) -> None:
        self._length = length
        self.rows: list[Row] = []
        self.drops: list[Drop] = []
        self.dots: list[Dot] = []

    def add(self, block: Block, inherited: tuple[Run, ...] = (), *, start: int = 0) -> None:
        """Put a block, and all behind it, on the next free rows; `inherited` stands before it on its own row."""
        row = len(self.rows)
        runs = [*inherited, *(run for part in block.parts for run in self._runs(part, block.path))]
        for part in block.parts:
            end = part.start + len(part.tokens)
            self.dots += [Dot(left=end / self._length, row=row, look=look) for look in part.looks]
        end = max((part.start + len(part.tokens) for part in block.parts), default=start)
        for number, leaf in enumerate(block.leaves):
            self.rows.append(Row(leaf=leaf, runs=runs if not number else [], end=end / self._length))
        for number, child in enumerate(block.children):
            if number:
                self.drops.append(Drop(left=end / self._length, top=row, bottom=len(self.rows)))
            self.add(child, () if number else tuple(runs), start=end)

    def _runs(self, part: Part, path: int) -> list[Run]:
        def kind(token: Token) -> str:
            return "o" if part.kind == "observed" else f"h{token.level}"

        found: list[Run] = []
        position = part.start
        for name, tokens in groupby(part.tokens, key=kind):
            size = sum(1 for _ in tokens)
            run = Run(left=position / self._length, width=size / self._length, kind=name, path=path)
            found.append(run)
            position += size
        return found
