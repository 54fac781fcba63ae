"""Recovery: a journal that cannot be read to its end goes back to its last good event.

What lies behind is kept, for whoever wants to look, under names that no reader takes for segments.
"""

import logging
from pathlib import Path

from engine.journal import number_of, segments, snapshot_of
from engine.records import Damage, scan

logger = logging.getLogger(__name__)


def recover(folder: Path, *, start: int = 0) -> int:
    """Cut a journal behind its last good event, from segment `start` on; returns how many bytes were set aside.

    A torn end is no damage: it never was an event. Only the live part is looked at: nobody who goes on with a run asks
    for what is archived.
    """
    following: int | None = None
    live = [path for path in segments(folder) if number_of(path) >= start]
    for place, path in enumerate(live):
        for item in scan(path):
            if isinstance(item, Damage):
                if item.is_followed:
                    return _cut(live[place:], item.start, f"the record at byte {item.start} is damaged")
            elif following is not None and item.number > following:
                return _cut(live[place:], item.start, f"{item.number - following} events are missing")
            else:
                following = max(item.number + 1, following or 0)
    return 0


def _cut(from_here: list[Path], position: int, why: str) -> int:
    """Set aside everything from `position` of the first of these segments on."""
    first, *later = from_here
    content = first.read_bytes()
    _aside(first).write_bytes(content[position:])
    with first.open("r+b") as file:
        file.truncate(position)
    num_bytes = len(content) - position
    for segment in later:
        num_bytes += segment.stat().st_size
        snapshot_of(segment).unlink(missing_ok=True)
        segment.rename(_aside(segment))
    logger.warning(
        "%s: %s; the run goes back to the event before it, and the %d bytes from there on are set aside as %s",
        first,
        why,
        num_bytes,
        first.with_suffix(".damaged-N").name,
    )
    return num_bytes


def _aside(segment: Path) -> Path:
    """A name that is not taken."""
    number = 0
    while (chosen := segment.with_suffix(f".damaged-{number}")).exists():
        number += 1
    return chosen
