"""The radix cache against a dictionary of prefixes, and the slot pool."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.inference.pool import SlotPool
from engine.inference.radix import RadixCache, RadixNode

NUM_SLOTS = 40
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
SALTS = st.integers(0, 1)
Prefix = tuple[int, tuple[int, ...]]


def ids(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


class CacheAgainstDictionary(RuleBasedStateMachine):
    """The model: the slot and the last use of every cached prefix, and the set of held ones."""

    locks = Bundle("locks")

    def __init__(self) -> None:
        super().__init__()
        self.cache = RadixCache()
        self.pool = SlotPool(NUM_SLOTS)
        self.slot: dict[Prefix, int] = {}
        self.used: dict[Prefix, int] = {}
        self.held: list[Prefix] = []
        self.tick = 0

    def cached_prefixes(self, tokens: list[int], salt: int) -> list[Prefix]:
        prefixes = [(salt, tuple(tokens[:n])) for n in range(1, len(tokens) + 1)]
        return [prefix for prefix in prefixes if prefix in self.slot]

    def touch(self, prefixes: list[Prefix]) -> None:
        self.tick += 1
        self.used.update(dict.fromkeys(prefixes, self.tick))

    def is_held(self, prefix: Prefix) -> bool:
        salt, tokens = prefix
        return any(s == salt and held[: len(tokens)] == tokens for s, held in self.held)

    @rule(tokens=TOKENS, salt=SALTS)
    def match(self, tokens: list[int], salt: int) -> None:
        known = self.cached_prefixes(tokens, salt)
        assert self.cache.match(ids(*tokens), salt=salt).slots.tolist() == [self.slot[p] for p in known]
        self.touch(known)

    @rule(tokens=TOKENS, salt=SALTS)
    def insert(self, tokens: list[int], salt: int) -> None:
        if self.pool.num_free < len(tokens):
            return
        slots = self.pool.take(len(tokens))
        known = self.cached_prefixes(tokens, salt)
        match = self.cache.insert(ids(*tokens), slots, salt=salt)
        for n in range(len(known), len(tokens)):
            self.slot[salt, tuple(tokens[: n + 1])] = int(slots[n])
        prefixes = self.cached_prefixes(tokens, salt)
        assert match.slots.tolist() == [self.slot[p] for p in prefixes]
        assert len(prefixes) == len(tokens)
        self.touch(prefixes)
        self.pool.give(slots[slots != match.slots])

    @rule(target=locks, tokens=TOKENS, salt=SALTS)
    def lock(self, tokens: list[int], salt: int) -> tuple[RadixNode, Prefix]:
        known = self.cached_prefixes(tokens, salt)
        match = self.cache.match(ids(*tokens), salt=salt)
        self.touch(known)
        self.cache.lock(match.node)
        held = (salt, tuple(tokens[: len(known)]))
        self.held.append(held)
        return match.node, held

    @rule(lock=consumes(locks))
    def unlock(self, lock: tuple[RadixNode, Prefix]) -> None:
        self.cache.unlock(lock[0])
        self.held.remove(lock[1])

    @rule(count=st.integers(1, 12))
    def evict(self, count: int) -> None:
        evictable = {p for p in self.slot if not self.is_held(p)}
        slots = self.cache.evict(count)
        assert slots.size == min(count, len(evictable))
        gone = {p for p in self.slot if self.slot[p] in set(slots.tolist())}
        assert gone <= evictable
        stay = evictable - gone
        if gone and stay:
            assert max(self.used[p] for p in gone) <= min(self.used[p] for p in stay)
        for prefix in gone:
            del self.slot[prefix], self.used[prefix]
        # What is left is closed under taking prefixes.
        assert all((salt, tokens[:-1]) in self.slot for salt, tokens in self.slot if len(tokens) > 1)
        self.pool.give(slots)

    @invariant()
    def slots_are_conserved(self) -> None:
        assert self.cache.num_cached == len(self.slot)
        assert self.cache.num_evictable == sum(not self.is_held(p) for p in self.slot)
        assert self.pool.num_free + self.cache.num_cached == NUM_SLOTS


TestCacheAgainstDictionary = CacheAgainstDictionary.TestCase
TestCacheAgainstDictionary.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_salt_hides_what_another_salt_computed() -> None:
    cache = RadixCache()
    cache.insert(ids(1, 2, 3), ids(7, 8, 9), salt=0)
    assert cache.match(ids(1, 2, 3), salt=1).slots.size == 0
    assert cache.match(ids(1, 2, 3), salt=0).slots.tolist() == [7, 8, 9]


def test_two_sequences_share_the_slots_of_their_common_prefix() -> None:
    cache = RadixCache()
    cache.insert(ids(1, 2, 3), ids(10, 11, 12), salt=0)
    assert cache.insert(ids(1, 2, 4), ids(20, 21, 22), salt=0).slots.tolist() == [10, 11, 22]
    assert cache.num_cached == 4


def test_a_lock_taken_before_an_edge_is_split_holds_both_halves() -> None:
    cache = RadixCache()
    node = cache.insert(ids(1, 2, 3, 4), ids(0, 1, 2, 3), salt=0).node
    cache.lock(node)
    cache.match(ids(1, 2, 9), salt=0)
    assert cache.evict(4).size == 0
    cache.unlock(node)
    assert cache.evict(4).size == 4


def test_the_end_of_the_least_recently_used_branch_goes_first() -> None:
    cache = RadixCache()
    cache.insert(ids(1, 2, 3), ids(0, 1, 2), salt=0)
    cache.insert(ids(1, 5, 6), ids(9, 3, 4), salt=0)
    cache.match(ids(1, 2, 3), salt=0)
    assert cache.evict(1).tolist() == [4]
    assert cache.evict(1).tolist() == [3]
    assert cache.evict(1).tolist() == [2]


def test_unlocking_what_is_not_locked_is_refused() -> None:
    cache = RadixCache()
    with pytest.raises(ValueError, match="not locked"):
        cache.unlock(cache.insert(ids(1), ids(0), salt=0).node)


def test_a_pool_refuses_to_give_more_than_it_has_and_to_take_a_slot_twice() -> None:
    pool = SlotPool(4)
    slots = pool.take(3)
    with pytest.raises(ValueError, match="2 slots wanted, 1 of 4 free"):
        pool.take(2)
    with pytest.raises(ValueError, match="named twice"):
        pool.give(slots[[0, 0]])
    pool.give(slots)
    with pytest.raises(ValueError, match="free already"):
        pool.give(slots[:1])
    assert pool.num_free == 4
    assert sorted(pool.take(4).tolist()) == [0, 1, 2, 3]
