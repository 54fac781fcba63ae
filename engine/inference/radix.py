"""RadixCache: which prefixes have their keys and values in the pool, as a token-level radix tree.

An edge holds a run of token ids and the slot of each. A *salt* names a separate tree: prefixes computed by one weight
version are never found under another. Holders lock the node they read up to, and a lock on a node is a lock on all its
ancestors; what nobody holds is evicted, least recently used first, from the leaves up, token by token. The cache
owns the slots in it and hands them back from `evict`; it never touches keys or values.
"""

import heapq
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from engine.types import Int32

_EMPTY: Int32 = np.empty(0, dtype=np.int32)


class RadixNode:
    """One edge of the tree and what hangs below it. A handle for `lock` and `unlock`, nothing else, to callers."""

    __slots__ = ("children", "is_queued", "last_used", "num_locks", "parent", "salt", "slots", "tokens")

    def __init__(self, parent: "RadixNode | None", tokens: Int32, slots: Int32, *, salt: Hashable) -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.salt = salt
        self.children: dict[int, RadixNode] = {}
        self.num_locks = 0
        self.last_used = 0
        self.is_queued = False

    def __lt__(self, other: "RadixNode") -> bool:
        return self.last_used < other.last_used

    def __repr__(self) -> str:
        return f"RadixNode({self.tokens.size} tokens, {len(self.children)} children, {self.num_locks} locks)"


class Match(NamedTuple):
    """The cached part of a sequence."""

    node: RadixNode
    """Where the cached part ends; lock it before the next `evict`."""
    slots: Int32
    """Slots of the first `slots.size` tokens of the sequence."""


class RadixCache:
    """Prefixes in, slots out. Not for several threads.

    >>> cache = RadixCache()
    >>> ids = np.arange(4, dtype=np.int32)
    >>> _ = cache.insert(ids, ids + 10, salt=0)
    >>> cache.match(np.array([0, 1, 9], dtype=np.int32), salt=0).slots.tolist()
    [10, 11]
    >>> cache.match(ids, salt=1).slots.tolist(), cache.evict(1).tolist(), cache.num_cached
    ([], [13], 3)
    """

    def __init__(self) -> None:
        self.num_cached = 0
        """Slots in the cache."""
        self.num_evictable = 0
        """Those of them that no lock holds."""
        self._roots: dict[Hashable, RadixNode] = {}
        self._leaves: list[tuple[int, RadixNode]] = []  # candidates for eviction, each node at most once
        self._tick = 0

    def __repr__(self) -> str:
        return f"RadixCache({self.num_cached} cached, {self.num_evictable} evictable, {len(self._roots)} salts)"

    def match(self, tokens: Int32, *, salt: Hashable) -> Match:
        """The longest cached prefix of `tokens`, marked as used now."""
        self._tick += 1
        node = self._roots.get(salt)
        if node is None:
            node = self._roots[salt] = RadixNode(None, _EMPTY, _EMPTY, salt=salt)
        parts: list[Int32] = []
        start = 0
        while start < tokens.size:
            child = node.children.get(int(tokens[start]))
            if child is None:
                break
            length = _common(child.tokens, tokens[start:])
            if length < child.tokens.size:
                child = self._split(child, length)
            child.last_used = self._tick
            parts.append(child.slots)
            start += length
            node = child
        return Match(node, np.concatenate(parts) if parts else _EMPTY)

    def insert(self, tokens: Int32, slots: Int32, *, salt: Hashable) -> Match:
        """Cache `tokens`, whose keys and values are in `slots`; returns the slots that the cache has for them.

        Where a prefix was cached already the returned slots are the older ones, and the caller keeps its own; from the
        first difference on, the slots given belong to the cache. So the caller still owns `slots[slots != returned]`.
        """
        if tokens.size != slots.size:
            raise ValueError(f"one slot a token: got {tokens.size} tokens, {slots.size} slots")
        node, known = self.match(tokens, salt=salt)
        if known.size == tokens.size:
            return Match(node, known)
        child = RadixNode(node, tokens[known.size :].copy(), slots[known.size :].copy(), salt=salt)
        child.last_used = self._tick
        node.children[int(child.tokens[0])] = child
        self.num_cached += child.tokens.size
        self.num_evictable += child.tokens.size
        self._offer(child)
        return Match(child, np.concatenate([known, child.slots]))

    def lock(self, node: RadixNode) -> None:
        """Keep the path from the root to `node` from being evicted, until one `unlock`."""
        step: RadixNode | None = node
        while step is not None:
            if step.num_locks == 0:
                self.num_evictable -= step.tokens.size
            step.num_locks += 1
            step = step.parent

    def unlock(self, node: RadixNode) -> None:
        """Take back one `lock` of the same node."""
        if node.num_locks <= 0:
            raise ValueError(f"{node!r} is not locked")
        step: RadixNode | None = node
        while step is not None:
            step.num_locks -= 1
            if step.num_locks == 0:
                self.num_evictable += step.tokens.size
                self._offer(step)
            step = step.parent

    def evict(self, count: int) -> Int32:
        """Forget up to `count` tokens that nobody holds, least recently used first; returns their slots.

        Fewer come back only where fewer than `count` were evictable.
        """
        freed: list[Int32] = []
        while count > 0 and self._leaves:
            last_used, node = heapq.heappop(self._leaves)
            node.is_queued = False
            if last_used != node.last_used:
                self._offer(node)  # used again since it was queued
                continue
            if node.num_locks or node.children:
                continue
            keep = max(node.tokens.size - count, 0)
            freed.append(node.slots[keep:])
            count -= node.tokens.size - keep
            if keep:
                # Copies, so that the tail's memory is not held by a view.
                node.tokens, node.slots = node.tokens[:keep].copy(), node.slots[:keep].copy()
                self._offer(node)
            else:
                self._remove(node)
        slots = np.concatenate(freed) if freed else _EMPTY
        self.num_cached -= slots.size
        self.num_evictable -= slots.size
        return slots

    def _remove(self, node: RadixNode) -> None:
        parent = node.parent
        assert parent is not None, "a root is never queued for eviction"
        del parent.children[int(node.tokens[0])]
        if parent.parent is not None:
            self._offer(parent)
        elif not parent.children and not parent.num_locks and self._roots.get(parent.salt) is parent:
            del self._roots[parent.salt]

    def _split(self, node: RadixNode, length: int) -> RadixNode:
        """Cut the edge of `node` behind `length` tokens; `node` stays the lower part, so that locks on it hold."""
        parent = node.parent
        assert parent is not None, "a root has no edge"
        upper = RadixNode(parent, node.tokens[:length].copy(), node.slots[:length].copy(), salt=node.salt)
        upper.num_locks = node.num_locks  # every lock below passes through it
        upper.last_used = node.last_used
        parent.children[int(upper.tokens[0])] = upper
        node.tokens, node.slots = node.tokens[length:].copy(), node.slots[length:].copy()
        node.parent = upper
        upper.children[int(node.tokens[0])] = node
        return upper

    def _offer(self, node: RadixNode) -> None:
        if node.num_locks == 0 and not node.children and not node.is_queued and node.parent is not None:
            node.is_queued = True
            heapq.heappush(self._leaves, (node.last_used, node))


def _common(one: Int32, other: Int32) -> int:
    """Length of the common prefix."""
    size = min(one.size, other.size)
    differs = one[:size] != other[:size]
    first = int(differs.argmax())
    return first if differs[first] else size
