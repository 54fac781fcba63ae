"""Session: the engine as a library; rollouts of your questions, with your tools and your reward."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from actors.config import Config
from actors.evaluate import grow_all
from actors.materials import materialise
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from engine.types import Prompt, Trajectory, TrajectoryGroup
from tools.schema import Tool

CONCURRENCY = 16
"""Prompts in flight."""


class Session:
    """`async with Session(config, tools=[...]) as session`; several may live in one process.

    Entering starts the generators' processes, leaving ends them, also after an error or a cancellation.
    """

    def __init__(self, config: Config, *, tools: Sequence[Tool] = (), reward: Tool | None = None) -> None:
        """`tools` come beside the configured ones; `reward` replaces the configured one.

        A reward is an invisible tool of that name: it receives `text`, `ground_truth` and `tools_run`, and returns an
        `engine.Reward`.
        """
        self._config = materialise(config)
        self._tools = tools
        self._reward = reward
        self._stack = AsyncExitStack()
        self._num_prompts = 0
        """Named so far: two lists of prompts in flight never share a name."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="arpo-session-"))
            runtime = LocalRuntime(self._config, Path(scratch), tools=self._tools, reward=self._reward)
            self._runtime = await stack.enter_async_context(runtime)
            model_path = await starting_model(self._config, runtime, emit=lambda event: None)
            self._router = await runtime.start_generators(model_path)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def prompts(self, questions: Iterable[str], *, ground_truths: Iterable[str] = ()) -> list[Prompt]:
        """Questions as prompts, under the configured system prompt; `ground_truths` are for the reward."""
        truths = list(ground_truths)
        system = self._config.data.system_prompt
        prompts: list[Prompt] = []
        for place, question in enumerate(questions):
            row, self._num_prompts = self._num_prompts, self._num_prompts + 1
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": question})
            prompts.append(
                Prompt(
                    prompt_id=f"session-r{row}",
                    epoch=0,
                    row=row,
                    token_ids=self._runtime.renderer.render_prompt(messages),
                    question=question,
                    ground_truth=truths[place] if place < len(truths) else "",
                )
            )
        return prompts

    async def rollouts(self, prompts: Iterable[Prompt]) -> AsyncGenerator[TrajectoryGroup, None]:
        """Grow a tree for each prompt; groups come as they finish. Closing the stream early ends what runs."""
        # Not bounded: `prompts` is, and a group nobody takes weighs no more than it did while it grew.
        finished: asyncio.Queue[TrajectoryGroup | None] = asyncio.Queue()
        config, seed = self._config.rollout, self._config.run.seed
        grow = self._runtime.rollouts(self._router, config=config, seed=seed, emit=lambda event: None)

        async def grow_them() -> None:
            try:
                await grow_all(prompts, grow, config=config, concurrency=CONCURRENCY, on_group=finished.put_nowait)
            finally:
                finished.put_nowait(None)

        growing = asyncio.create_task(grow_them(), name="session rollouts")
        try:
            while (group := await finished.get()) is not None:
                yield group
            await growing
        finally:
            growing.cancel()
            await asyncio.gather(growing, return_exceptions=True)

    def text(self, group: TrajectoryGroup, trajectory: Trajectory) -> str:
        """The response of a trajectory, tool results included."""
        tokens = group.tree.token_ids(trajectory.leaf)[group.prompt.token_ids.size :]
        return self._runtime.renderer.text(tokens)
