"""Findings: what training taught, in plain words, where the task is one whose trajectories can be read."""

from collections.abc import Iterator

from actors.config import Config
from actors.report.pieces import DecodeText
from actors.report.record import GrownTree, RunRecord
from tools.toolworld_habits import Habits, findings

SPAN = 5
"""Steps that count as early, and as late."""


def what_was_taught(record: RunRecord, config: Config | None, *, text: DecodeText) -> list[str]:
    """Sentences about the first and the last trajectories of a run; none for a task that nothing is known of."""
    if config is None or config.world is None:
        return []
    early = Habits.of(_texts((tree for tree in record.trees if tree.num_steps < SPAN), text))
    late = Habits.of(_texts((tree for tree in record.trees if tree.num_steps > record.num_steps - SPAN), text))
    return findings(early, late, sloppy=config.world.sloppy)


def _texts(trees: Iterator[GrownTree], text: DecodeText) -> Iterator[str]:
    for tree in trees:
        group = tree.group
        for trajectory in group.trajectories:
            yield text(group.tree.token_ids(trajectory.leaf)[group.prompt.token_ids.size :])
