"""Lines: findings as a person reads them; each line can be understood alone, and the last one counts them."""

import textwrap
from collections.abc import Sequence

from actors.doctor.finding import LEVELS, Finding, Level, count

GAP = 2
MAX_WIDTH = 140
"""On a wider line the eye loses its way."""
MIN_TEXT = 30
"""Columns below which sentences are not broken at all."""


def lines_of(findings: Sequence[Finding], *, subject: str, width: int | None = None) -> list[str]:
    """What is refused comes last, where it is seen; findings of one level keep their order.

    Sentences are broken at `width`, where there is one: a terminal's.
    """
    level_width = max(map(len, LEVELS)) + GAP
    margin = level_width + max((len(finding.key) for finding in findings), default=0) + GAP
    room = None if width is None else min(width, MAX_WIDTH) - margin
    lines: list[str] = []
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        head = f"{finding.level:<{level_width}}{finding.key}"
        broken = [finding.text] if room is None or room < MIN_TEXT else textwrap.wrap(finding.text, room)
        lines += [f"{head:<{margin}}{broken[0]}", *(" " * margin + more for more in broken[1:])]
    return [*lines, summary(findings, subject=subject)]


def summary(findings: Sequence[Finding], *, subject: str) -> str:
    """`run.toml: 1 refused, 2 warnings, 17 ok`."""
    counts = count(findings)
    words: dict[Level, str] = {"refused": "refused", "warning": "warning" if counts["warning"] == 1 else "warnings"}
    parts = [f"{counts[level]} {words.get(level, level)}" for level in reversed(LEVELS) if counts[level]]
    return f"{subject}: {', '.join(parts)}"
