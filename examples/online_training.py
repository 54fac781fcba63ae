"""Agents teach the policy behind a gateway: the official client streams and calls tools, and each answer gets a reward.

python -m examples.online_training configs/demo.toml

starts `arpo serve` with training switched on, which makes the cold start of the configuration first. What the agents
know of it is its address and two keys: they ask the questions of the generated task, run its tools themselves, and say
what each answer was worth. Questions that nobody is rewarded for are asked greedily before and after.
"""

import argparse
import asyncio
import itertools
import os
import secrets
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from openai import AsyncOpenAI

from actors import Config
from actors.materials import materialise
from engine.answers import alternatives
from engine.chat_template import as_function
from engine.dataset import DataConfig
from engine.dataset_files import Row, read_rows
from engine.types import ToolCall
from examples import openai_agent
from tools.config import build_executor
from tools.executor import Executor
from tools.rewards import exact_reward

START_S = 1800.0
"""For a cold start."""
STOP_S = 60.0
CONCURRENCY = 64
"""Conversations at once while success is measured."""


class Lesson(NamedTuple):
    """How much is taught."""

    steps: int
    num_questions: int
    num_prompts: int = 12
    """Asked at the same time, and trees of a step."""
    group_size: int = 16
    """Agents that answer one prompt, and are credited together."""


class Outcome(NamedTuple):
    """What the agents came to."""

    before: float
    after: float
    """Greedy success."""
    version: int
    """Of the weights, from 0: how many steps the policy has learnt."""
    num_conversations: int
    """That were rewarded."""


class Agents:
    """Agents of the generated task, and whoever judges them. `async with Agents(...) as agents`."""

    def __init__(self, url: str, tools: Executor, *, key: str, reward_key: str) -> None:
        self._health = f"{url.removesuffix('/v1')}/health"
        self._client = AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=300.0)
        self._judge = AsyncOpenAI(base_url=url, api_key=reward_key, max_retries=0, timeout=60.0)
        self._offered = [as_function(spec) for spec in tools.specs]
        self._run = {spec.name: _runner(tools, spec.name) for spec in tools.specs}
        self.num_rewarded = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()
        await self._judge.close()

    async def version(self) -> int:
        """Of the weights that the policy samples with."""
        health: Any = await self._client.get(self._health, cast_to=object)
        return health["version"]

    async def learn(self, row: Row) -> None:
        """Answer as the policy samples, and be told what that was worth."""
        answer = await self._ask(row)
        score = exact_reward(answer.text, alternatives(row.ground_truth)).score
        path = f"/conversations/{answer.conversation}/reward"
        await self._judge.post(path, body={"reward": score}, cast_to=object)
        self.num_rewarded += 1

    async def success(self, rows: Sequence[Row]) -> float:
        """The share of right answers when the policy says what it finds most likely; nothing is learnt from that."""
        slots = asyncio.Semaphore(CONCURRENCY)

        async def one(row: Row) -> bool:
            async with slots:
                answer = await self._ask(row, temperature=0.0)
                await self._client.post(f"/conversations/{answer.conversation}/discard", cast_to=object)
            return exact_reward(answer.text, alternatives(row.ground_truth)).is_correct

        found = await asyncio.gather(*map(one, rows))
        return sum(found) / len(found)

    async def _ask(self, row: Row, **sampling: Any) -> openai_agent.Answer:
        said = {message["role"]: message["content"] for message in row.messages}
        return await openai_agent.ask(
            self._client, said["user"], system=said.get("system", ""), tools=self._offered, run=self._run, **sampling
        )


def _runner(tools: Executor, name: str) -> openai_agent.Run:
    async def run(**arguments: Any) -> str:
        return (await tools.call(ToolCall(name=name, arguments=arguments))).text

    return run


async def teach(config: Config, *, command: Sequence[str], lesson: Lesson, say: Callable[[str], None]) -> Outcome:
    """Serve by `command`, measure, have agents learn until the policy has made so many steps, and measure again.

    `config` is materialised, and is that of the command.
    """
    key, reward_key = secrets.token_hex(16), secrets.token_hex(16)
    keys = f'[agents]\nkey = "{key}"\nreward_key = "{reward_key}"\n'
    async with (
        served(command, keys=keys) as url,
        build_executor(config.tools) as tools,
        Agents(url, tools, key=key, reward_key=reward_key) as agents,
    ):
        held_out = _rows(config.data if config.eval is None else config.eval.data)[: lesson.num_questions]
        before = await agents.success(held_out)
        say(f"before: {before:.3f} of {len(held_out)} questions")
        rows = itertools.cycle(_rows(config.data))

        async def learn() -> None:
            while await agents.version() < lesson.steps:
                row = next(rows)
                await asyncio.gather(*(agents.learn(row) for _ in range(lesson.group_size)))

        async with asyncio.TaskGroup() as tasks:
            for number in range(lesson.num_prompts):
                tasks.create_task(learn(), name=f"prompt {number}")
        version, after = await agents.version(), await agents.success(held_out)
        say(f"after {version} steps and {agents.num_rewarded} conversations: {after:.3f}")
        return Outcome(before, after, version, agents.num_rewarded)


@asynccontextmanager
async def served(command: Sequence[str], *, keys: str) -> AsyncGenerator[str, None]:
    """`arpo serve` for the length of the block; the address it says."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "ARPO_SERVE_KEYS": keys}
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), START_S)).decode()
        if " serves " not in line:
            raise RuntimeError(f"arpo serve ended with {await process.wait()}")
        yield line.split()[0]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def serve_command(config: str, *overrides: str, lesson: Lesson) -> list[str]:
    """`arpo serve` in a run of its own, training on traffic: batches and groups of the lesson's sizes."""
    switched = [
        f"run.name=online-{secrets.token_hex(3)}",
        "serve.port=0",
        "serve.train=true",
        f"serve.batch_size={lesson.num_prompts}",
        f"serve.group_size={lesson.group_size}",
        "serve.stream_interval=16",
        "train.max_staleness=2",
    ]
    return [sys.executable, "-m", "actors.cli", "serve", config, *switched, *overrides]


def _rows(data: DataConfig) -> list[Row]:
    return list(
        read_rows(Path(data.path), prompt=data.prompt_column, answer=data.answer_column, source=data.source_column)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="a TOML file with a [world]")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=12, help="of the learner (default 12)")
    parser.add_argument("--questions", type=int, default=500, help="asked before and after (default 500)")
    given = parser.parse_args()
    lesson = Lesson(steps=given.steps, num_questions=given.questions)
    config = materialise(Config.load(given.config, *given.overrides))
    command = serve_command(given.config, *given.overrides, lesson=lesson)
    asyncio.run(teach(config, command=command, lesson=lesson, say=_say))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
