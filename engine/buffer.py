"""GroupBuffer: the one place where rollouts and training meet, and where staleness is bounded.

    admit ──> (rollout) ──> finish ──> take ──> (train, publish) ──> release
                       └──> refuse                                     frees the slot

`B = (max_staleness + 1) * P` slots; a slot lives from admit to release, and release comes only after the weights have
arrived. A group admitted under version v must be trained from version v + max_staleness at the latest: its *deadline*.

`take` gives the finished groups with the earliest deadlines, so a fast group may overtake a slow one, but only where
every group left behind still fits: for each j, at most (j + 1) * P groups whose deadline is within j steps of the next
batch. (Earliest deadline first is optimal for equal jobs, so if its choice leaves no room, none does, and `take`
waits.) Admission never breaks the condition: with P groups per version and B slots in all, the newest deadline
always has room.
"""

import asyncio
from dataclasses import dataclass

from engine.types import TrajectoryGroup, Version


@dataclass(slots=True)
class Slot:
    """One admitted prompt."""

    prompt_id: str
    index: int
    """Order of admission."""
    version: Version
    """Version of the weights when it was admitted; no token of its group can be older."""
    cohort: int
    group: TrajectoryGroup | None = None
    is_taken: bool = False
    is_refused: bool = False
    oldest_version: Version = 0
    """What staleness is measured on: of the oldest sampled token, once it is known. Kept, since each wake-up of `take`
    asks all slots, and a group computes it from all of its nodes."""

    def __post_init__(self) -> None:
        self.oldest_version = self.version

    def fill(self, group: TrajectoryGroup) -> None:
        self.group = group
        self.oldest_version = max(self.version, group.oldest_version)


class GroupBuffer:
    """Bounded, ordered, closable. All verbs but `admit` and `take` return at once."""

    def __init__(
        self,
        *,
        batch_size: int,
        max_staleness: int,
        version: Version = 0,
        num_admitted: int = 0,
        by_cohort: bool = False,
    ) -> None:
        """`by_cohort` fixes what a batch is made of (deterministic runs): batch n is what cohort n did not refuse.

        `num_admitted` counts the admissions of earlier processes: P of them in a row are a cohort.
        """
        self.batch_size = batch_size
        self.max_staleness = max_staleness
        self.version = version
        self.num_slots = (max_staleness + 1) * batch_size
        self._by_cohort = by_cohort
        self._slots: dict[str, Slot] = {}
        self._num_admitted = num_admitted
        self._is_closed = False
        self._changed = asyncio.Condition()

    # -- verbs ------------------------------------------------------------------------------------------------

    async def admit(self, prompt_id: str) -> Slot:
        """Wait for a slot and take it. Cancelling gives it up."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._slots) < self.num_slots)
        self._num_admitted += 1
        return self.restore(prompt_id, index=self._num_admitted - 1, version=self.version)

    def restore(self, prompt_id: str, *, index: int, version: Version, is_taken: bool = False) -> Slot:
        """Put a prompt in a slot without waiting: what a journal says was admitted before."""
        slot = Slot(prompt_id, index, version, index // self.batch_size, is_taken=is_taken)
        self._slots[prompt_id] = slot
        return slot

    async def finish(self, group: TrajectoryGroup) -> None:
        """The group is whole and worth training on."""
        self._slots[group.prompt.prompt_id].fill(group)
        await self._wake()

    async def refuse(self, prompt_id: str) -> None:
        """The group will not be trained; its slot is free at once (by cohort: when its cohort is released)."""
        if self._by_cohort:
            self._slots[prompt_id].is_refused = True
        else:
            del self._slots[prompt_id]
        await self._wake()

    async def take(self) -> list[TrajectoryGroup] | None:
        """The next batch, oldest deadlines first; waits for it. None when the buffer is closed and nothing is left.

        After `close` the last batch may be smaller than P. By cohort, a batch may be smaller too, or empty.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._ready() is not None or self._is_drained)
            chosen = self._ready()
        if chosen is None:
            return None
        for slot in chosen:
            slot.is_taken = True
        return [slot.group for slot in chosen if slot.group is not None]

    async def release(self, *, version: Version) -> None:
        """Every generator samples with `version`: the slots of all groups taken before are free."""
        self.version = version
        self._slots = {name: slot for name, slot in self._slots.items() if not slot.is_taken}
        await self._wake()

    async def close(self) -> None:
        """No prompt will be admitted any more."""
        self._is_closed = True
        await self._wake()

    # -- queries ----------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Admitted, and neither finished nor refused."""
        return sum(not (slot.group or slot.is_refused or slot.is_taken) for slot in self._slots.values())

    @property
    def num_ready(self) -> int:
        """Finished and not taken."""
        return sum(slot.group is not None and not slot.is_taken for slot in self._slots.values())

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._slots)

    @property
    def _is_drained(self) -> bool:
        return self._is_closed and all(slot.is_taken for slot in self._slots.values())

    def _ready(self) -> list[Slot] | None:
        """What `take` may give now; None where it must wait."""
        waiting = [slot for slot in self._slots.values() if not slot.is_taken]
        return self._ready_cohort(waiting) if self._by_cohort else self._ready_batch(waiting)

    def _ready_batch(self, waiting: list[Slot]) -> list[Slot] | None:
        finished = [slot for slot in waiting if slot.group is not None]
        is_last = self._is_closed and len(waiting) <= self.batch_size
        size = len(waiting) if is_last else self.batch_size
        if not size or len(finished) < size:
            return None
        chosen = sorted(finished, key=lambda slot: (slot.oldest_version, slot.index))[:size]
        taken = {slot.prompt_id for slot in chosen}
        rest = [slot for slot in waiting if slot.prompt_id not in taken]
        return chosen if self._fits(rest) else None

    def _fits(self, rest: list[Slot]) -> bool:
        """Can every group of `rest` still be trained within its deadline, from the batch after this one on?"""
        slack = sorted(slot.oldest_version + self.max_staleness - (self.version + 1) for slot in rest)
        return all(count < (max(left, -1) + 1) * self.batch_size for count, left in enumerate(slack))

    def _ready_cohort(self, waiting: list[Slot]) -> list[Slot] | None:
        if not waiting:
            return None
        first = min(slot.cohort for slot in waiting)
        members = sorted((slot for slot in waiting if slot.cohort == first), key=lambda slot: slot.index)
        is_whole = len(members) == self.batch_size or self._is_closed
        is_resolved = all(slot.group is not None or slot.is_refused for slot in members)
        return members if is_whole and is_resolved else None

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def __repr__(self) -> str:
        return (
            f"GroupBuffer(version={self.version}, {self.num_running} running, {self.num_ready} ready, "
            f"{self.num_free} of {self.num_slots} free)"
        )
