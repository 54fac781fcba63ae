"""`arpo serve` with a real policy and a real learner: log-probabilities agree, and rewards of clients teach."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

from actors.config import Config
from actors.gateway.config import ServeConfig
from actors.run_dir import RunDir
from actors.runtime import LocalRuntime
from actors.serve import serve
from engine.journal import read_unnumbered
from engine.rollout_config import SamplingConfig
from engine.tree import TreeBuilder
from engine.types import TrajectoryGroup
from learner.config import LearnerConfig, ReinforcePp
from tests.gateway_world import KEY, REWARD_KEY, answered, said, user
from tests.test_parity import LEARNER_TO_ENGINE, behaviour, build

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find a page.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
LEARNER = LearnerConfig(dtype="float32", lr=1e-2, weight_decay=0.0, advantage=ReinforcePp(), micro_batch_tokens=1024)
Ask = Callable[..., Awaitable[Any]]


def configured(folder: Path, **serve_section: Any) -> Config:
    """A small policy that likes to search, and keys."""
    (folder / "keys.toml").write_text(f'[alice]\nkey = "{KEY}"\nreward_key = "{REWARD_KEY}"\n')
    config = build(folder, "qwen3")
    sampling = SamplingConfig(max_segment_tokens=24)
    return msgspec.structs.replace(
        config,
        rollout=msgspec.structs.replace(config.rollout, sampling=sampling),
        learner=LEARNER,
        serve=ServeConfig(port=0, keys_file=str(folder / "keys.toml"), **serve_section),
    )


@asynccontextmanager
async def served(config: Config, run: RunDir) -> AsyncGenerator[Ask, None]:
    """The command, in this process; the value posts to it."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(config, run, say=lambda line: address.set_result(line.split("/v1")[0])))
    try:
        await asyncio.wait([serving, address], return_when=asyncio.FIRST_COMPLETED)
        url = address.result() if address.done() else serving.result()
        async with aiohttp.ClientSession() as http:

            async def post(path: str, body: Any, *, key: str = KEY) -> Any:
                headers = {"Authorization": f"Bearer {key}"}
                async with http.post(f"{url}{path}", json=body, headers=headers) as response:
                    reply = await response.json()
                    assert response.status == 200, reply
                    return reply

            yield post
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def converse(post: Ask, *, tools: bool = True, max_tokens: int = 24) -> tuple[str, str]:
    """A conversation of some turns; its name, and all that the policy said."""
    history, words = [user("who is it")], ""
    for _ in range(4):
        body = {"messages": history, "max_tokens": max_tokens, **({"tools": [SEARCH]} if tools else {})}
        reply = await post("/v1/chat/completions", body)
        message = said(reply)
        words += message["content"] or ""
        history.append(message)
        if not tools:
            break
        calls = message.get("tool_calls") or ()
        history += [answered(call, "page one note two") for call in calls] or [user("who is it one")]
    return reply["conversation_id"], words


async def reward(post: Ask, name: str, value: float) -> None:
    await post(f"/v1/conversations/{name}/reward", {"reward": value}, key=REWARD_KEY)


def recorded(run: RunDir) -> list[TrajectoryGroup]:
    groups: list[TrajectoryGroup] = []
    for path in sorted(run.path.glob("traffic/*/trees/*.log")):
        events = list(read_unnumbered(path))
        tree = TreeBuilder(events[0].prompt)
        for event in events:
            tree.apply(event)
        groups.append(tree.group())
    return groups


def test_recorded_log_probabilities_are_those_of_the_learner(tmp_path: Path) -> None:
    async def main() -> None:
        config, run = configured(tmp_path), RunDir(tmp_path / "run")
        async with served(config, run) as post:
            for _ in range(50):
                async with asyncio.TaskGroup() as tasks:
                    talks = [tasks.create_task(converse(post)) for _ in range(10)]
                for talk in talks:
                    await reward(post, talk.result()[0], 1.0)
        leaves = [behaviour(group, t.leaf) for group in recorded(run) for t in group.trajectories]
        assert len(leaves) >= 500
        async with LocalRuntime(config, tmp_path / "learner") as runtime:
            trainer = await runtime.start_trainer(runtime.model_path)
            scored = await trainer.logprobs([ids for ids, _ in leaves])
        gap = max(float(np.nanmax(np.abs(ours - said))) for ours, (_, said) in zip(scored, leaves, strict=True))
        num_sampled = sum(int((~np.isnan(said)).sum()) for _, said in leaves)
        print(f"{len(leaves)} conversations, {num_sampled} sampled tokens, {gap:.1e} apart at most")
        assert num_sampled > 10_000
        assert gap < LEARNER_TO_ENGINE

    asyncio.run(main())


def test_a_policy_learns_from_its_traffic_what_clients_reward(tmp_path: Path) -> None:
    async def main() -> None:
        config, run = configured(tmp_path, train=True, batch_size=16), RunDir(tmp_path / "run")
        shares: list[float] = []
        async with served(config, run) as post:
            for _ in range(24):
                async with asyncio.TaskGroup() as tasks:
                    talks = [tasks.create_task(converse(post, tools=False, max_tokens=1)) for _ in range(32)]
                rewards = [float(talk.result()[1].strip() == "three") for talk in talks]
                for talk, value in zip(talks, rewards, strict=True):
                    await reward(post, talk.result()[0], value)
                shares.append(sum(rewards) / len(rewards))
        print("share of rewarded turns:", " ".join(f"{share:.2f}" for share in shares))
        versions = {int(v) for group in recorded(run) for node in group.tree.nodes for v in node.versions}
        assert max(versions) >= 8
        assert sum(shares[-4:]) / 4 > sum(shares[:2]) / 2 + 0.3

    asyncio.run(main())
