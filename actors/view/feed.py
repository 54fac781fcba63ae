"""Feed: values by key, each with the revision in which it last changed, so that a page asks only for what is new."""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Feed(Generic[K, V]):
    """The newest `limit` keys (all without one) in the order of their last change.

    >>> feed = Feed[str, int]()
    >>> feed.put("a", 1, revision=1); feed.put("b", 2, revision=2); feed.put("a", 3, revision=3)
    >>> feed.since(0), feed.since(2), feed.since(3)
    ([2, 3], [3], [])
    """

    def __init__(self, *, limit: int | None = None) -> None:
        self._entries: dict[K, tuple[int, V]] = {}
        self._limit = limit
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V, *, revision: int) -> None:
        """Revisions never fall."""
        self._entries.pop(key, None)
        self._entries[key] = revision, value
        if self._limit is not None and len(self._entries) > self._limit:
            del self._entries[next(iter(self._entries))]
            self.num_dropped += 1

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[1]

    def since(self, revision: int) -> list[V]:
        """The values that changed behind a revision, the longest unchanged first."""
        found: list[V] = []
        for changed_in, value in reversed(self._entries.values()):
            if changed_in <= revision:
                break
            found.append(value)
        return found[::-1]
