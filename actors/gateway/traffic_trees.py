"""TrafficTrees: the trees that may still grow, and which conversations share one: those of one prompt are a group."""

import asyncio
import logging

from actors.gateway.config import ServeConfig
from actors.gateway.records import Records
from actors.gateway.traffic_tree import OnGroup, OnTree, TrafficTree
from engine.types import Int32, RolloutStatus, Version

logger = logging.getLogger(__name__)


class TrafficTrees:
    """Trees by name. A tree that nothing lives in is closed, and given away where it may be trained on."""

    def __init__(self, config: ServeConfig, *, records: Records, on_group: OnGroup | None, on_close: OnTree) -> None:
        self._config = config
        self._records = records
        self._on_group = on_group
        self._on_close = on_close
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
        self._on_close(tree.prompt_id)
        is_worth = any(trajectory.status is not RolloutStatus.FAILED for trajectory in group.trajectories)
        if self._config.train and self._on_group is not None and is_worth and not tree.is_deleted:
            self._on_group(group)
