"""Habits: how a policy reads the pages of toolworld, told from the texts of its trajectories.

A crowded page says two things about its subject. Whoever copies the first one, as the sloppy expert does, goes wrong
half of the time; whoever looks for the one that was asked for does not.
"""

import re
from collections.abc import Iterable
from typing import Self

import msgspec

_READING = re.compile(
    r"<search> \S+ \S+ : (?P<relation>\S+) of (?P<subject>\S+) </search>\s*"
    r"<result>\s*Page 1: (?P<page>[^<]*?) \.\s*</result>\s*<think> (?P<said>\S+) </think>",
    re.DOTALL,
)


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over the pages that said something else about the subject before what was asked for."""

    num_pages: int = 0
    num_right: int = 0
    """The object of the right sentence was said."""
    num_first: int = 0
    """The object of the first sentence about the subject was said instead."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Count the readings in the texts of responses.

        >>> told = "the school of Nata is Mupe . the boss of Kela is Sovi . the mother of Kela is Tuna ."
        >>> page = f"<result>\\nPage 1: {told}\\n</result>"
        >>> Habits.of([f"<search> Bado Rimu : mother of Kela </search> {page} <think> Sovi </think>"])
        Habits(num_pages=1, num_right=0, num_first=1)
        """
        num_pages = num_right = num_first = 0
        for text in texts:
            for reading in _READING.finditer(text):
                seam = f" of {reading['subject']} is "
                own = dict(sentence.split(seam) for sentence in reading["page"].split(" . ") if seam in sentence)
                wanted = f"the {reading['relation']}"
                if wanted in own and wanted != next(iter(own)):
                    num_pages += 1
                    num_right += reading["said"] == own[wanted]
                    num_first += reading["said"] == next(iter(own.values()))
        return cls(num_pages=num_pages, num_right=num_right, num_first=num_first)

    @property
    def right(self) -> float:
        """Share of the pages that were read right."""
        return self.num_right / max(self.num_pages, 1)

    @property
    def first(self) -> float:
        """Share of the pages of which the first sentence was copied."""
        return self.num_first / max(self.num_pages, 1)


def findings(early: Habits, late: Habits, *, sloppy: float) -> list[str]:
    """What changed between early and late trajectories of a run, in plain words; nothing where nothing was read."""
    if not (early.num_pages and late.num_pages):
        return []
    return [
        f"The expert it imitated was careless: behind {_percent(sloppy)} of its searches it copied the first thing "
        "that the page said about its subject, whatever it had asked for.",
        f"Where that was the wrong thing, the policy copied it in {_percent(early.first)} of {early.num_pages:,} cases "
        f"early in RL, and in {_percent(late.first)} of {late.num_pages:,} late; it found what it had asked for in "
        f"{_percent(early.right)}, then in {_percent(late.right)}.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
