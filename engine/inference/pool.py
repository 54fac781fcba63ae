"""SlotPool: which token slots of the KV cache are free. One slot holds the keys and values of one token, all layers."""

import numpy as np

from engine.types import Int32


class SlotPool:
    """A fixed number of slots, taken and given back in any order. Freed slots are used again last in, first out.

    >>> pool = SlotPool(8)
    >>> slots = pool.take(3); pool.num_free
    5
    >>> pool.give(slots); pool.num_free
    8
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots <= 0:
            raise ValueError(f"a pool needs at least one slot, got {num_slots=}")
        self.num_slots = num_slots
        self.num_free = num_slots
        self._stack: Int32 = np.arange(num_slots - 1, -1, -1, dtype=np.int32)
        self._is_free = np.ones(num_slots, dtype=np.bool_)

    def __repr__(self) -> str:
        return f"SlotPool({self.num_free} of {self.num_slots} free)"

    def take(self, count: int) -> Int32:
        """`count` free slots, int32. Raises `ValueError` where fewer are free; nothing is taken then."""
        if count > self.num_free:
            raise ValueError(f"{count} slots wanted, {self.num_free} of {self.num_slots} free")
        end = self.num_free
        self.num_free = end - count
        slots = self._stack[self.num_free : end][::-1].copy()
        self._is_free[slots] = False
        return slots

    def give(self, slots: Int32) -> None:
        """Return slots. Raises `ValueError` for one that is free already or named twice; nothing is returned then."""
        end = self.num_free + slots.size
        if end > self.num_slots or self._is_free[slots].any():
            raise ValueError("a slot was given back that is free already")
        self._is_free[slots] = True
        if int(np.count_nonzero(self._is_free)) != end:
            self._is_free[slots] = False
            raise ValueError("a slot was named twice in one return")
        self._stack[self.num_free : end] = slots
        self.num_free = end
