"""Batching: which requests run, on which KV slots, and what each step computes.

A request waits until a row and slots for its whole prompt are free, reads what the radix cache or a running request
has of it, and then takes part in every step: with a chunk of its prompt, later with its last token. Where running
requests cannot grow, the youngest goes back to waiting; its keys and values stay cached as long as there is room.
There is always progress: a request that runs alone finds every slot free or evictable, and none is admitted that
needs more slots than there are.
"""

import bisect
from collections.abc import Callable, Hashable

import numpy as np

from engine.inference.attention import Segments
from engine.inference.pool import SlotPool
from engine.inference.radix import RadixCache
from engine.inference.rows import ActiveRequest, Rows
from engine.types import Int32

_HEADROOM = 16
"""Tokens each running request can grow by when another one is admitted, so that admission rarely preempts."""
_RUN = 16
"""Slots a row is given at once while there are enough."""
_WORTH_WAITING = 2
"""A request waits for a running one that is about to compute at least this many tokens of its prompt; a decoding one is
always about to compute one, and is not waited for."""


class Batching:
    """The waiting queue, the rows, the slots and the radix cache. `salt` names the present weights to the cache."""

    def __init__(self, *, max_kv_tokens: int, max_running: int, prefill_chunk: int) -> None:
        self.rows = Rows(max_running)
        self.pool = SlotPool(max_kv_tokens)
        self.radix = RadixCache()
        self.waiting: list[ActiveRequest] = []
        """By precedence, ties in the order of arrival."""
        self.salt: Hashable = 0
        self.num_evicted = 0
        self._prefill_chunk = prefill_chunk

    def __repr__(self) -> str:
        return f"Batching({self.rows.used.size} running, {len(self.waiting)} waiting, {self.pool!r}, {self.radix!r})"

    def wait(self, active: ActiveRequest) -> None:
        """Queue a request behind all that go before it."""
        bisect.insort(self.waiting, active, key=lambda other: (other.request.precedence, other.arrival))

    def admit(self, *, stop_set: Callable[[tuple[str, ...]], int], only_started: bool) -> None:
        """Move requests from waiting to rows while they fit; with `only_started`, those that had run before."""
        for active in list(self.waiting):
            if not self.rows.has_free:
                return
            if only_started and not active.has_started:
                continue
            prompt = active.tokens[:-1]  # the last token is always computed: its logits are wanted
            salt = self._salt_of(active)
            match = self.radix.match(prompt, salt=salt)
            available, promised = self._look_among_running(prompt, match.slots.size, active.request.cache_scope)
            if available > match.slots.size:
                match = self.radix.match(prompt, salt=salt)
            if promised - match.slots.size >= _WORTH_WAITING:
                continue
            cached = match.slots.size
            size = active.tokens.size
            self.radix.lock(match.node)
            slots = self._allocate(size - cached, reserve=self._headroom(active))
            if slots is None:
                self.radix.unlock(match.node)
                return
            self.waiting.remove(active)
            row = self.rows.place(active, stop_set=stop_set(active.request.sampling.stop))
            self.rows.slots[row, :cached] = match.slots
            self.rows.slots[row, cached:size] = slots
            self.rows.computed[row] = cached
            self.rows.allocated[row] = size
            active.node, active.num_shared = match.node, cached
            if not active.has_started:
                active.num_cached = cached
            # A token sampled before a preemption would have been computed anyway.
            active.num_prefilled += size - cached - (size > active.num_prompt)
            active.has_started = True
            active.is_mixed = False
            active.has_unsent_mixed = active.has_unsent_mixed and active.unsent[0].size > 0

    def plan(self) -> Segments | None:
        """The next step: the last token of each row, and prompt chunks up to the budget; None where nothing runs.

        Every new token has a slot afterwards; rows may have been preempted to make that so.
        """
        self._grow()
        rows = self.rows
        used = rows.used
        if not used.size:
            return None
        counts = rows.length[used] - rows.computed[used]
        if int(counts.max()) > 1:
            is_prefill = counts > 1
            wanted = np.where(is_prefill, counts, 0)
            before = np.cumsum(wanted) - wanted
            counts = np.where(is_prefill, np.clip(self._prefill_chunk - before, 0, counts), counts).astype(np.int32)
            used, counts = used[counts > 0], counts[counts > 0]
        return Segments(rows.slots, rows=used, starts=rows.computed[used], counts=counts)

    def preempt(self, row: int, *, keep: bool) -> None:
        """Send a request back to waiting, with its tokens; `keep` caches its keys and values."""
        active = self.rows.owner(row)
        self.release(row, keep=keep)
        self.wait(active)

    def release(self, row: int, *, keep: bool) -> None:
        """Free a row and its slots; `keep` leaves keys and values in the cache, where one version computed them."""
        active = self.rows.owner(row)
        assert active.node is not None, "a request on a row holds a lock"
        rows, node = self.rows, active.node
        if keep and not active.is_mixed:
            self._publish(active, int(rows.computed[row]))
            node = active.node
        self.pool.give(rows.slots[row, active.num_shared : rows.allocated[row]])
        self.radix.unlock(node)
        active.node, active.num_shared = None, 0
        self.rows.remove(row)

    def _publish(self, active: ActiveRequest, size: int) -> None:
        """Hand the slots of a running request's first `size` tokens to the cache, which it then shares."""
        if size <= active.num_shared:
            return
        assert active.node is not None, "a request on a row holds a lock"
        rows, row = self.rows, active.row
        own = rows.slots[row, :size]
        match = self.radix.insert(rows.tokens[row, :size], own, salt=self._salt_of(active))
        # What another request had cached in the meantime replaces our own computation of it.
        twice = own[active.num_shared :] != match.slots[active.num_shared :]
        self.pool.give(own[active.num_shared :][twice])
        own[:] = match.slots
        self.radix.lock(match.node)
        self.radix.unlock(active.node)
        active.node, active.num_shared = match.node, size

    def _salt_of(self, active: ActiveRequest) -> Hashable:
        return self.salt, active.request.cache_scope

    def _look_among_running(self, prompt: Int32, cached: int, scope: str) -> tuple[int, int]:
        """Publish what a running request of `scope` has computed of `prompt` beyond the first `cached` tokens.

        Returns how many leading tokens are cached then, and how many some running request will have computed.
        """
        rows, used = self.rows, self.rows.used
        if cached >= prompt.size or not used.size:
            return cached, cached
        alike = used[(rows.length[used] > cached) & (rows.tokens[used, cached] == prompt[cached])]
        best, available, promised = None, cached, cached
        for row in alike.tolist():
            active = rows.owner(row)
            if active.is_mixed or active.request.cache_scope != scope:
                continue
            size = min(prompt.size, int(rows.length[row]))
            differs = np.flatnonzero(rows.tokens[row, :size] != prompt[:size])
            common = int(differs[0]) if differs.size else size
            promised = max(promised, common)
            if min(common, int(rows.computed[row])) > available:
                best, available = active, min(common, int(rows.computed[row]))
        if best is not None:
            self._publish(best, available)
        return available, promised

    def _headroom(self, newcomer: ActiveRequest) -> int:
        rows, used = self.rows, self.rows.used
        if not used.size:
            return 0
        left = np.minimum(rows.limit[used] - rows.length[used], _HEADROOM)
        limit = newcomer.num_prompt + newcomer.request.sampling.max_new_tokens
        return int(left.sum()) + min(limit - newcomer.tokens.size, _HEADROOM)

    def _allocate(self, count: int, *, reserve: int = 0) -> Int32 | None:
        """`count` slots, evicting what nobody holds; None, with nothing changed, where `reserve` would not stay."""
        if self.pool.num_free + self.radix.num_evictable < count + reserve:
            return None
        missing = count - self.pool.num_free
        if missing > 0:
            evicted = self.radix.evict(missing)
            self.num_evicted += evicted.size
            self.pool.give(evicted)
        return self.pool.take(count)

    def _grow(self) -> None:
        """Give slots to each row whose next token has none, preempting the youngest where there are too few.

        A row gets a run of slots, so that its keys lie side by side in memory: one slot a row and step would put
        neighbours in a sequence a power of two apart, and a CPU's caches map those to the same few lines.
        """
        rows = self.rows
        while True:
            used = rows.used
            growing = used[rows.allocated[used] == rows.computed[used]]
            if not growing.size:
                return
            start = rows.computed[growing]
            for run in (_RUN, 1):
                sizes = np.minimum(rows.limit[growing] - start, run)
                slots = self._allocate(int(sizes.sum()))
                if slots is not None:
                    new = Segments(rows.slots, rows=growing, starts=start, counts=sizes)
                    rows.slots[new.table_rows, new.positions] = slots
                    rows.allocated[growing] += sizes
                    return
            self.preempt(int(used[-1]), keep=True)
