"""BarrierRollout: the control flow of ARPO's released code, for comparison only.

    while anything is active, for all prompts together:
        every active path generates until its tool call or its end          wait for all
        every call runs in the pool                                          wait for all
        prompt by prompt, each path that goes on may branch, in the order of its number, while fewer than M exist
        a prompt with nothing active and fewer than M paths gets one fresh path

vllm_rollout_with_tools.py at a95cd08, L264-508. What is left out does not concern time: masks, length limits, and the
baseline that belongs to another prompt. With M=16, N=8 and a policy that calls no tool this takes 9 rounds.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.coins import coin, seed_of
from engine.interfaces import Generator, ToolHost
from engine.renderer import Renderer
from engine.types import GenerateRequest, Int32, Prompt, SamplingParams, ToolCall

MAX_NEW_TOKENS = 4096


@dataclass(slots=True)
class BarrierPath:
    """One row of the batch."""

    prompt: Prompt
    number: int
    token_ids: Int32
    segment: Int32
    num_results: int = 0
    forked_from: int = -1
    is_active: bool = True


class BarrierRollout:
    """Rolls a whole batch out to M paths a prompt. Used once: `await rollout.run()`, then read `paths`."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        size: int,
        initial: int,
        seed: int,
        generator: Generator,
        tools: ToolHost,
        renderer: Renderer,
        branch_probability: float = 0.5,
    ) -> None:
        """M=`size`, N=`initial`; a path branches where its coin is at most `branch_probability` (an entropy difference
        of 0 in the released rule)."""
        self._prompts = prompts
        self._size = size
        self._initial = initial
        self._seed = seed
        self._generator = generator
        self._tools = tools
        self._renderer = renderer
        self._branch_probability = branch_probability
        self.paths: dict[str, list[BarrierPath]] = {prompt.prompt_id: [] for prompt in prompts}
        self.num_rounds = 0

    async def run(self) -> None:
        """Every prompt to exactly M ended paths."""
        for prompt in self._prompts:
            for _ in range(min(self._initial, self._size)):
                self._start(prompt)
        while active := [path for paths in self.paths.values() for path in paths if path.is_active]:
            self.num_rounds += 1
            await _all(self._generate(path) for path in active)
            await _all(self._call(path) for path in active)
            for prompt in self._prompts:
                self._go_on(prompt)

    def _go_on(self, prompt: Prompt) -> None:
        paths = self.paths[prompt.prompt_id]
        active = [path for path in paths if path.is_active]
        for path in active:
            if len(paths) < self._size and self._coin(path) <= self._branch_probability:
                self._branch(path)
        if not active and len(paths) < self._size:
            self._start(prompt)

    def _start(self, prompt: Prompt) -> None:
        paths = self.paths[prompt.prompt_id]
        paths.append(BarrierPath(prompt, len(paths), prompt.token_ids, prompt.token_ids[:0]))

    def _branch(self, path: BarrierPath) -> None:
        paths = self.paths[path.prompt.prompt_id]
        child = BarrierPath(path.prompt, len(paths), path.token_ids, path.segment, path.num_results, path.number)
        paths.append(child)

    def _coin(self, path: BarrierPath) -> float:
        return coin(self._seed, path.prompt.prompt_id, path.number, path.num_results)

    async def _generate(self, path: BarrierPath) -> None:
        name = path.prompt.prompt_id
        request = GenerateRequest(
            request_id=f"{name}/{path.number}/{path.token_ids.size}",
            token_ids=path.token_ids,
            sampling=SamplingParams(
                max_new_tokens=MAX_NEW_TOKENS,
                stop=self._renderer.stop_strings,
                stop_token_ids=self._renderer.stop_token_ids,
                seed=seed_of(self._seed, name, path.number),
            ),
            affinity_key=name,
        )
        chunks = [chunk.token_ids async for chunk in self._generator.generate(request)]
        path.segment = np.concatenate(chunks)
        path.token_ids = np.concatenate([path.token_ids, path.segment])

    async def _call(self, path: BarrierPath) -> None:
        calls: Sequence[ToolCall] = self._renderer.parse(path.segment)
        path.is_active = bool(calls)
        if calls:
            results = [await self._tools.call(call) for call in calls]
            observed = self._renderer.render_results(results, segment=path.segment)
            path.token_ids = np.concatenate([path.token_ids, observed])
            path.num_results += 1


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Start everything, and wait for the last of it."""
    async with asyncio.TaskGroup() as tasks:
        for one in work:
            tasks.create_task(one)
