"""Conversations become trajectories: as sampled, once each, whatever a client sends back of them."""

import asyncio
from pathlib import Path

import pytest

from engine.inference.router import Router
from engine.inference.scripted import ScriptedGenerator
from engine.tokenizer import HfTokenizer
from engine.types import NodeKind, RolloutStatus
from tests.gateway_world import ADD, KEY, OTHER_KEY, REWARD_KEY, Adder, World, answered, paths_of, said, user, world

pytestmark = pytest.mark.timeout(60)


async def add(here: World, conversation: str | None = None) -> str:
    """A conversation that adds by the tool; returns its id."""
    question = user("what is 20 plus 3?")
    first = await here.chat(question, tools=[ADD], conversation=conversation)
    (call,) = said(first)["tool_calls"]
    second = await here.chat(question, said(first), answered(call, "23"), tools=[ADD], conversation=conversation)
    assert said(second)["content"] == "the sum is 23."
    return second["conversation_id"]


async def reward(here: World, name: str, value: float = 1.0) -> None:
    status, reply = await here.post(f"/v1/conversations/{name}/reward", {"reward": value}, key=REWARD_KEY)
    assert (status, reply["status"]) == (200, "ended")


def test_a_conversation_with_a_tool_is_one_path_of_tokens_as_sampled(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await reward(here, await add(here))
            (group,) = here.groups
            (trajectory,) = group.trajectories
            assert (trajectory.status, trajectory.reward.score) == (RolloutStatus.COMPLETED, 1.0)
            assert (trajectory.num_tool_calls, trajectory.num_multi_tool) == (1, 1)
            kinds = [group.tree.nodes[i].kind for i in group.tree.path_to(trajectory.leaf)]
            assert kinds == [NodeKind.PROMPT, NodeKind.SAMPLED, NodeKind.OBSERVED, NodeKind.SAMPLED]
            assert group.tree.token_ids(trajectory.leaf).tolist() == here.log.sequences[-1].tolist()
            # The second request went on from the first one's own tokens, spelled as nobody would encode them.
            first, second = here.log.requests[0], here.log.sequences[0]
            assert here.log.requests[1].token_ids[: second.size].tolist() == second.tolist()
            assert first.token_ids.size < second.size
            (recorded,) = here.recorded()
            assert recorded.is_finished
            assert paths_of([recorded])[0].tolist() == here.log.sequences[-1].tolist()

    asyncio.run(main())


def test_a_conversation_is_found_by_what_was_said_or_by_its_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            by_prefix = await add(here)
            by_name = await add(here, "mine")
            assert by_name == "mine" != by_prefix
            trees = here.recorded()
            assert [len(tree.paths) for tree in trees] == [1, 1]

    asyncio.run(main())


def test_a_rewritten_history_becomes_a_branch_and_what_it_left_is_not_trained(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            first = await here.chat(user("one"), conversation="mine")
            second = await here.chat(user("one"), said(first), user("two"), conversation="mine")
            await here.chat(user("one"), said(first), user("three"), conversation="mine")
            status, shown = await here.send("GET", "/v1/conversations/mine")
            assert (status, shown["rewrites"], shown["turns"]) == (200, 1, 3)
            await reward(here, "mine")
            (group,) = here.groups
            assert [t.status for t in group.trajectories] == [RolloutStatus.FAILED, RolloutStatus.COMPLETED]
            assert group.trajectories[1].fork_length == here.log.sequences[0].size
            leaves = [group.tree.token_ids(t.leaf).tolist() for t in group.trajectories]
            assert leaves == [here.log.sequences[1].tolist(), here.log.sequences[2].tolist()]
            assert said(second)["content"] == "you said: two"

    asyncio.run(main())


def test_another_beginning_under_the_same_name_is_another_tree(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await here.chat(user("one"), conversation="mine")
            await here.chat(user("summary of one"), conversation="mine")
            await reward(here, "mine")
            assert len(here.recorded()) == 2
            (group,) = here.groups
            assert group.tree.token_ids(group.trajectories[0].leaf).tolist() == here.log.sequences[1].tolist()

    asyncio.run(main())


def test_without_a_name_another_continuation_is_another_conversation(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            first = await here.chat(user("one"))
            second = await here.chat(user("one"), said(first), user("two"))
            third = await here.chat(user("one"), said(first), user("three"))
            names = [reply["conversation_id"] for reply in (first, second, third)]
            assert names[0] == names[1] != names[2]
            await reward(here, names[1], 0.0)
            await reward(here, names[2], 1.0)
            (group,) = here.groups
            assert [t.reward.score for t in group.trajectories] == [0.0, 1.0]
            assert group.num_forks == 1

    asyncio.run(main())


def test_conversations_of_one_prompt_are_a_group(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, group_size=3) as here:
            names = [(await here.chat(user("one")))["conversation_id"] for _ in range(4)]
            for number, name in enumerate(names[:3]):
                assert not here.groups
                await reward(here, name, float(number))
            (group,) = here.groups
            assert [t.reward.score for t in group.trajectories] == [0.0, 1.0, 2.0]
            assert [t.forked_from for t in group.trajectories] == [-1, -1, -1]

    asyncio.run(main())


def test_a_fork_shares_the_history_and_gets_a_reward_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            first = await here.chat(user("one"), conversation="mine")
            status, fork = await here.post("/v1/conversations/mine/fork")
            assert (status, fork["tokens"]) == (200, here.log.sequences[0].size)
            await here.chat(user("one"), said(first), user("two"), conversation=fork["id"])
            await reward(here, "mine", 0.0)
            assert not here.groups
            await reward(here, fork["id"], 1.0)
            (group,) = here.groups
            assert [t.reward.score for t in group.trajectories] == [0.0, 1.0]

    asyncio.run(main())


@pytest.mark.parametrize("wish", [{"temperature": 0.5}, {"top_p": 0.9}], ids=str)
def test_what_was_sampled_otherwise_than_the_learner_assumes_is_not_trained(tmp_path: Path, wish: dict) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            reply = await here.chat(user("one"), **wish)
            await reward(here, reply["conversation_id"])
            assert not here.groups
            (tree,) = here.recorded()
            assert (tree.paths[0].status, tree.paths[0].detail[:7]) == (RolloutStatus.FAILED, "sampled")

    asyncio.run(main())


def test_nothing_is_trained_until_training_is_switched_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, train=False) as here:
            await reward(here, await add(here))
            assert not here.groups
            assert len(here.recorded()) == 1

    asyncio.run(main())


def test_what_nobody_rewards_or_somebody_discards_trains_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, idle_s=1e-9) as here:
            idle, discarded = [(await here.chat(user(text)))["conversation_id"] for text in ("one", "two")]
            assert (await here.post(f"/v1/conversations/{discarded}/discard"))[0] == 200
            here.serving._store.sweep()
            assert (await here.send("GET", f"/v1/conversations/{idle}"))[0] == 404
            assert not here.groups
            assert sorted(tree.paths[0].detail for tree in here.recorded()) == ["discarded", "idle"]

    asyncio.run(main())


def test_a_reward_may_come_before_or_after_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            before, after = [(await here.chat(user(text)))["conversation_id"] for text in ("one", "two")]
            body = {"reward": 0.5, "final": False}
            assert (await here.post(f"/v1/conversations/{before}/reward", body, key=REWARD_KEY))[1]["status"] == "open"
            assert not here.groups
            assert (await here.post(f"/v1/conversations/{before}/finish"))[1]["status"] == "ended"
            assert (await here.post(f"/v1/conversations/{after}/finish"))[1]["status"] == "finished"
            assert [group.trajectories[0].reward.score for group in here.groups] == [0.5]
            await reward(here, after)
            assert len(here.groups) == 2

    asyncio.run(main())


def test_a_deleted_conversation_is_gone_from_disk_also_when_it_had_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            ended = await add(here)
            await reward(here, ended)
            living = (await here.chat(user("one")))["conversation_id"]
            for name in (ended, living):
                assert (await here.send("DELETE", f"/v1/conversations/{name}", key=OTHER_KEY))[0] == 404
                assert (await here.send("DELETE", f"/v1/conversations/{name}"))[0] == 200
                assert (await here.send("DELETE", f"/v1/conversations/{name}"))[0] == 404
            assert [path for path in here.folder.rglob("*") if path.is_file()] == []
            assert len(here.groups) == 1

    asyncio.run(main())


def test_a_reward_for_what_was_taken_back_is_taken_back_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await here.chat(user("one"), conversation="mine")
            where = "/v1/conversations/mine"
            given = {"reward": 1.0, "final": False}
            assert (await here.post(f"{where}/reward", given, key=REWARD_KEY))[0] == 200
            await here.chat(user("another"), conversation="mine")
            assert (await here.post(f"{where}/finish"))[1]["status"] == "finished"
            assert here.groups == []

    asyncio.run(main())


def test_a_router_forgets_a_tree_that_is_closed(tmp_path: Path) -> None:
    """It counts the trees of each server, and would send all new ones to whoever has had the fewest ever."""
    routers: list[Router] = []

    def routed(tokenizer: HfTokenizer) -> Router:
        routers.append(Router([ScriptedGenerator(Adder(tokenizer))]))
        return routers[0]

    async def main() -> None:
        async with world(tmp_path, generator=routed) as here:
            name = (await here.chat(user("one")))["conversation_id"]
            assert routers[0].num_trees == 1
            assert (await here.post(f"/v1/conversations/{name}/discard"))[0] == 200
            assert routers[0].num_trees == 0

    asyncio.run(main())


@pytest.mark.parametrize(("idle_s", "num_closed"), [(3600.0, 0), (1e-9, 1)])
def test_a_group_waits_for_conversations_for_as_long_as_they_may_be_idle(
    tmp_path: Path, idle_s: float, num_closed: int
) -> None:
    async def main() -> None:
        async with world(tmp_path, group_size=3, idle_s=idle_s) as here:
            await reward(here, await add(here))
            here.serving._store.sweep()
            assert len(here.groups) == num_closed

    asyncio.run(main())


def test_records_grow_old(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, retention_s=1e-9) as here:
            await here.chat(user("one"))
            assert len(here.recorded()) == 1
            await here.serving._store.expire()
            assert here.recorded() == []

    asyncio.run(main())


def test_no_tenant_reads_or_extends_what_another_one_said(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            mine = await here.chat(user("one"), conversation="mine")
            body = {"messages": [user("one"), said(mine), user("two")]}
            status, theirs = await here.post(
                "/v1/chat/completions", body, key=OTHER_KEY, headers={"X-Conversation-Id": "mine"}
            )
            assert status == 200
            # The name is free in every tenant, and leads to a conversation of its own.
            scopes = [request.cache_scope for request in here.log.requests]
            assert (scopes, theirs["conversation_id"]) == (["alice", "bob"], "mine")
            assert (await here.send("GET", "/v1/conversations/mine"))[1]["turns"] == 1
            paths = [path.parent.parent.name for path in here.folder.glob("*/trees/*.log")]
            assert sorted(paths) == ["alice", "bob"]
            alone = (await here.chat(user("alone")))["conversation_id"]
            for verb in ("fork", "finish", "discard"):
                status, _ = await here.post(f"/v1/conversations/{alone}/{verb}", key=OTHER_KEY)
                assert status == 404
            for key in (KEY, OTHER_KEY, "wrong", None):
                status, _ = await here.post("/v1/conversations/mine/reward", {"reward": 1}, key=key)
                assert status == 401
            assert not here.groups

    asyncio.run(main())
