"""Page: sections, a tree and a configuration, set as one HTML file that needs nothing but itself; a door to jinja2."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from actors.quantities import NOTHING
from actors.report.dendrogram import dendrogram
from actors.report.section import MINUS, Section, number
from actors.report.tree_view import LEVELS, Block, Part, Token, TreeView

MAX_TOKENS = 360
"""A longer part is shown by its beginning and its end."""
TAIL_TOKENS = 60
MAX_ROOTS = 4
MAX_COLUMNS = 4
"""Forks one inside the other that are drawn side by side; a deeper tree is drawn by indentation alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One figure that a reader should see first."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that the template sets."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    findings: Sequence[str]
    sections: Sequence[Section]
    tree: TreeView | None
    tree_sentences: Sequence[str]
    probe_tokens: int
    config: str
    """JSON; empty where the folder holds none."""


def render(page: Page) -> str:
    """The HTML of the page; all text in it is escaped."""
    from jinja2 import Environment, StrictUndefined

    folder = files("actors.report")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["number"] = number
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    tree = page.tree
    return template.render(
        page=page,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        picture=None if tree is None else dendrogram(tree),
        is_wide=tree is not None and max((root.depth for root in tree.roots), default=0) <= MAX_COLUMNS,
        levels=[f"{low:g}" for low in (0, *LEVELS)],
        roots=([], []) if tree is None else split(tree),
        shown=shown,
        outcome=outcome,
        signed=signed,
        max_tokens=MAX_TOKENS,
        nothing=NOTHING,
    )


def shown(part: Part) -> list[Token | None]:
    """The tokens of a part; None once, where the middle of a long one is left out."""
    if len(part.tokens) <= MAX_TOKENS:
        return list(part.tokens)
    return [*part.tokens[: MAX_TOKENS - TAIL_TOKENS], None, *part.tokens[-TAIL_TOKENS:]]


def signed(value: float) -> str:
    """`+0.40`, `−1.21`, `0.00`."""
    return f"{value:+.2f}".replace("-", MINUS) if round(value, 2) else "0.00"


def split(tree: TreeView) -> tuple[list[Block], list[Block]]:
    """The paths from the prompt whose texts are shown at once, those with mixed ends first, and the others."""

    def is_even(root: Block) -> bool:
        return len({leaf.is_correct for leaf in root.all_leaves()}) < 2

    roots = sorted(tree.roots, key=is_even)
    return roots[:MAX_ROOTS], roots[MAX_ROOTS:]


def outcome(block: Block) -> str:
    """`good`, `bad` or `mixed`: what the trajectories through a block came to; empty where it has none of its own."""
    signs = {leaf.is_correct for leaf in block.leaves}
    return "" if not signs else "mixed" if len(signs) > 1 else "good" if signs == {True} else "bad"
