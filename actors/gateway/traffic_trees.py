"""TrafficTrees: the trees that may still grow, and which conversations share one: those of one prompt are a group."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from actors.gateway.config import ServeConfig
from actors.gateway.records import Records
from actors.gateway.traffic_tree import TrafficTree
from engine.types import Int32, RolloutStatus, TrajectoryGroup, Version

logger = logging.getLogger(__name__)


OnGroup = Callable[[TrajectoryGroup], None]
OnTree = Callable[[str], None]


def ignore(what: object) -> None:
    """For what nobody wants to know."""


@dataclass(frozen=True, kw_only=True)
class Hearers:
    """Who wants to know what becomes of trees."""

    on_group: OnGroup = ignore
    """Takes a finished tree whose conversations may be trained on."""
    on_close: OnTree = ignore
    """Hears, by its `prompt_id`, of a tree that will not grow any more."""
    on_delete: OnTree = ignore
    """Hears of one that was deleted."""


class TrafficTrees:
    """Trees by name. A tree that nothing lives in is closed, and given away where it may be trained on."""

    def __init__(self, config: ServeConfig, *, records: Records, hears: Hearers) -> None:
        self._config = config
        self._records = records
        self._hears = hears
        self._open: dict[str, TrafficTree] = {}
        self._joinable: dict[tuple[str, bytes], TrafficTree] = {}
        """By tenant and prompt: groups that are not full."""
        self._num_planted = 0

    def __len__(self) -> int:
        return len(self._open)

    def for_prompt(self, tenant: str, prompt: Int32, *, question: str, version: Version) -> TrafficTree:
        """The tree in which a conversation with this prompt begins."""
        key = (tenant, prompt.tobytes())
        if (tree := self._joinable.get(key)) is not None:
            if tree.num_paths + 1 >= self._config.group_size:
                del self._joinable[key]
            return tree
        tree = TrafficTree(
            tenant, prompt, question=question, version=version, index=self._num_planted, records=self._records
        )
        self._num_planted += 1
        self._open[tree.name] = tree
        if self._config.group_size > 1:
            self._joinable[key] = tree
        return tree

    def delete(self, name: str) -> None:
        """Write and train nothing of a tree any more; what lives in it goes on."""
        if (tree := self._open.get(name)) is not None:
            tree.is_deleted = True
            self._bar(tree)
            if not tree.is_live:
                self._close(tree)

    def settle(self, tree: TrafficTree) -> None:
        """A path of this tree ended: write it, and close the tree where no other will come."""
        tree.flush()
        tree.settled_at = asyncio.get_running_loop().time()
        if not tree.is_live and tree not in self._joinable.values():
            self._close(tree)

    def close_waiting(self, *, since: float) -> None:
        """Groups that wait for conversations, and in which none has lived since then, wait no longer."""
        for tree in [tree for tree in self._joinable.values() if not tree.is_live and tree.settled_at < since]:
            self._bar(tree)
            self._close(tree)

    def _bar(self, tree: TrafficTree) -> None:
        self._joinable = {key: other for key, other in self._joinable.items() if other is not tree}

    def _close(self, tree: TrafficTree) -> None:
        del self._open[tree.name]
        group = tree.finish()
        self._hears.on_close(tree.prompt_id)
        is_worth = any(trajectory.status is not RolloutStatus.FAILED for trajectory in group.trajectories)
        if self._config.train and is_worth and not tree.is_deleted:
            self._hears.on_group(group)
