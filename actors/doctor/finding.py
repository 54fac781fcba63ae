"""Finding: one thing the doctor knows, in one sentence, with the path of the key it is about."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "warning", "refused"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "refused")
"""From good to bad."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Made by one check; read by a person, or as JSON by a program."""

    level: Level
    """`ok`: as it should be. `warning`: a run would start, and may not do what was meant. `refused`: a run would be
    refused, run out of memory, or never train a step."""
    key: str
    """`learner.tensor_parallel`, as an override spells it; of what belongs to the machine, its name."""
    text: str


def ok(key: str, text: str) -> Finding:
    return Finding(level="ok", key=key, text=text)


def warning(key: str, text: str) -> Finding:
    return Finding(level="warning", key=key, text=text)


def refused(key: str, text: str) -> Finding:
    return Finding(level="refused", key=key, text=text)


def of_error(error: Exception, *, key: str) -> Finding:
    """What a part of the run refuses with, as a finding; the path of a key in the message is the finding's own.

    >>> of_error(ValueError("no such thing - at $.sft.0.shares"), key="sft")
    Finding(level='refused', key='sft.0.shares', text='no such thing')
    """
    text, separator, path = str(error).rpartition(" - at $.")
    return refused(path, text) if separator else refused(key, path)


def count(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many there are of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in LEVELS}
