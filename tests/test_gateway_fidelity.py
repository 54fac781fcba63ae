"""Fidelity: what is recorded is what the generator's own log says, over many conversations of every shape."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from engine.coins import seed_of
from tests.gateway_world import ADD, REWARD_KEY, World, answered, paths_of, said, user, world

pytestmark = pytest.mark.timeout(120)

NUM_CONVERSATIONS = 500


async def converse(here: World, number: int) -> None:
    """Some turns with and without tools, now and then rewritten or forked, under a name or without one."""
    rng = Random(seed_of(0, "conversation", number))
    name = f"conversation-{number}" if rng.random() < 0.5 else None
    history = [user(f"{number} plus {rng.randrange(100)}?" if rng.random() < 0.5 else f"hello {number}")]
    for turn in range(rng.randrange(1, 5)):
        reply = await here.chat(*history, tools=[ADD], conversation=name)
        message = said(reply)
        history.append(message)
        if calls := message.get("tool_calls"):
            history += [answered(call, str(rng.randrange(200))) for call in calls]
        if not calls or rng.random() < 0.3:
            history.append(user(f"{turn} plus {number}" if rng.random() < 0.5 else "thank you \N{BEER MUG} <b>"))
        if rng.random() < 0.2 and len(history) > 3:
            history = [*history[:2], user("something else")] if "tool_calls" not in history[1] else history
        name = reply["conversation_id"] if rng.random() < 0.5 else name
    last = (await here.chat(*history, tools=[ADD], conversation=name))["conversation_id"]
    if rng.random() < 0.2:
        last = (await here.post(f"/v1/conversations/{last}/fork"))[1]["id"]
    status, _ = await here.post(f"/v1/conversations/{last}/reward", {"reward": rng.random()}, key=REWARD_KEY)
    assert status == 200


def test_over_500_conversations_the_recorded_tokens_are_those_of_the_generators_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, max_length=10**6) as here:
            for first in range(0, NUM_CONVERSATIONS, 20):
                async with asyncio.TaskGroup() as tasks:
                    for number in range(first, first + 20):
                        tasks.create_task(converse(here, number))
            trees = here.recorded()
            logged = {ids.tobytes() for ids in here.log.sequences}
            recorded = {ids.tobytes() for ids in paths_of(trees)}
            # Every path ends where a request of the log ended, and every request lies on a path.
            assert recorded <= logged
            prefixes = {ids[:size].tobytes() for ids in paths_of(trees) for size in ends(here, ids.size)}
            assert logged <= prefixes
            assert len(trees) >= NUM_CONVERSATIONS
            assert sum(len(tree.paths) for tree in trees) > len(trees)
            assert sum(len(group.trajectories) for group in here.groups) > 0

    asyncio.run(main())


def ends(here: World, size: int) -> list[int]:
    """The lengths at which requests of the log ended, up to `size`."""
    return [length for length in sorted({ids.size for ids in here.log.sequences}) if length <= size]
