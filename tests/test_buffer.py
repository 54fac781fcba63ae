"""The buffer: slots, order, and the staleness bound."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.buffer import GroupBuffer
from engine.clock import run_virtual
from engine.coins import coin
from engine.types import Node, NodeKind, Prompt, Reward, RolloutStatus, Trajectory, TrajectoryGroup, TrajectoryTree


def group(prompt_id: str, version: int) -> TrajectoryGroup:
    ids, floats = np.zeros(1, np.int32), np.zeros(1, np.float32)
    prompt = Prompt(prompt_id=prompt_id, epoch=0, row=0, token_ids=ids, question="", ground_truth="")
    node = Node(
        parent=-1,
        kind=NodeKind.SAMPLED,
        token_ids=ids,
        logprobs=floats,
        versions=np.full(1, version, np.int32),
        entropies=floats,
    )
    end = Trajectory(path=0, leaf=0, status=RolloutStatus.COMPLETED, reward=Reward(score=0.0))
    return TrajectoryGroup(prompt=prompt, tree=TrajectoryTree(nodes=(node,)), trajectories=(end,))


def names(groups: list[TrajectoryGroup] | None) -> list[str]:
    assert groups is not None
    return [g.prompt.prompt_id for g in groups]


def test_slot_is_held_until_release_not_until_take() -> None:
    async def main() -> None:
        buffer = GroupBuffer(batch_size=1, max_staleness=0)
        await buffer.admit("a")
        await buffer.finish(group("a", 0))
        assert names(await buffer.take()) == ["a"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(buffer.admit("b"), 10)
        await buffer.release(version=1)
        assert (await buffer.admit("b")).version == 1

    run_virtual(main())


def test_a_refused_group_frees_its_slot_at_once() -> None:
    async def main() -> None:
        buffer = GroupBuffer(batch_size=1, max_staleness=0)
        await buffer.admit("a")
        await buffer.refuse("a")
        await asyncio.wait_for(buffer.admit("b"), 10)

    run_virtual(main())


def test_take_overtakes_a_slow_group_only_while_its_deadline_allows() -> None:
    async def main() -> None:
        buffer = GroupBuffer(batch_size=1, max_staleness=1)
        await buffer.admit("slow")
        await buffer.admit("fast")
        await buffer.finish(group("fast", 0))
        assert names(await buffer.take()) == ["fast"]
        await buffer.release(version=1)
        await buffer.admit("faster")
        await buffer.finish(group("faster", 1))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(buffer.take(), 10)
        await buffer.finish(group("slow", 0))
        assert names(await buffer.take()) == ["slow"]

    run_virtual(main())


def test_a_group_that_began_late_has_more_time() -> None:
    """Staleness is measured on the oldest trained token, not on admission."""

    async def main() -> None:
        buffer = GroupBuffer(batch_size=1, max_staleness=1)
        await buffer.admit("late")
        await buffer.admit("fast")
        await buffer.finish(group("fast", 0))
        await buffer.take()
        await buffer.release(version=1)
        await buffer.finish(group("late", 1))
        await buffer.admit("slow")
        assert names(await buffer.take()) == ["late"]

    run_virtual(main())


def test_a_closed_buffer_gives_what_is_left_and_then_none() -> None:
    async def main() -> None:
        buffer = GroupBuffer(batch_size=2, max_staleness=1)
        for name in "abc":
            await buffer.admit(name)
            await buffer.finish(group(name, 0))
        await buffer.close()
        assert names(await buffer.take()) == ["a", "b"]
        await buffer.release(version=1)
        assert names(await buffer.take()) == ["c"]
        await buffer.release(version=2)
        assert await buffer.take() is None

    run_virtual(main())


def test_batches_by_cohort_hold_their_own_members_and_shrink_by_refusals() -> None:
    async def main() -> None:
        buffer = GroupBuffer(batch_size=2, max_staleness=1, by_cohort=True)
        for name in "abcd":
            await buffer.admit(name)
        for name in "dcb":
            await buffer.finish(group(name, 0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(buffer.take(), 10)
        await buffer.refuse("a")
        assert names(await buffer.take()) == ["b"]
        assert buffer.num_free == 0
        await buffer.release(version=1)
        assert buffer.num_free == 2
        assert names(await buffer.take()) == ["c", "d"]

    run_virtual(main())


@given(
    seed=st.integers(0, 10_000),
    batch_size=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    slow_every=st.integers(2, 6),
    refuse=st.floats(0, 0.4),
)
def test_staleness_is_bounded_and_nothing_starves(
    seed: int, batch_size: int, max_staleness: int, slow_every: int, refuse: float
) -> None:
    """Whatever finishes when: no batch is older than the bound, every group is trained once, nothing stalls."""
    num_prompts = 40
    trained: list[str] = []
    refused: list[str] = []

    async def rollout(buffer: GroupBuffer, name: str, number: int) -> None:
        await asyncio.sleep(coin(seed, name, "wait") * (30 if number % slow_every == 0 else 1))
        version = buffer.version
        await asyncio.sleep(coin(seed, name, "run") * (100 if number % slow_every == 0 else 3))
        if coin(seed, name, "refuse") < refuse:
            refused.append(name)
            await buffer.refuse(name)
        else:
            await buffer.finish(group(name, version))

    async def admit(buffer: GroupBuffer) -> None:
        async with asyncio.TaskGroup() as rollouts:
            for number in range(num_prompts):
                slot = await buffer.admit(f"p{number}")
                rollouts.create_task(rollout(buffer, slot.prompt_id, number))
            await buffer.close()

    async def train(buffer: GroupBuffer) -> None:
        while (batch := await buffer.take()) is not None:
            for taken in batch:
                assert 0 <= buffer.version - taken.oldest_version <= max_staleness
                trained.append(taken.prompt.prompt_id)
            await asyncio.sleep(coin(seed, "train", len(trained)) * 5)
            await buffer.release(version=buffer.version + 1)

    async def main() -> None:
        buffer = GroupBuffer(batch_size=batch_size, max_staleness=max_staleness)
        async with asyncio.TaskGroup() as loops:
            loops.create_task(admit(buffer))
            loops.create_task(train(buffer))

    run_virtual(main())
    assert sorted(trained + refused) == sorted(f"p{i}" for i in range(num_prompts))
