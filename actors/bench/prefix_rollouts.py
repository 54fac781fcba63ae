"""The rollouts whose cache reads are counted: trees of a random policy that searches, and new weights in the middle.

All between the prompts and the servers is the engine's own: `TreeRollout`, the search tool, the router, the generators.
A recorder stands between the router and each generator, and nothing else is added. Half of the trees are in flight at a
time; when half of them are finished, every server gets other weights (`retract`) while trees run on it. Then each
server is asked once more for the longest prompts of its finished trees, which only the old weights have computed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from actors.bench.prefix_log import Log, RecordingGenerator, Sent
from actors.bench.prefix_materials import Materials
from actors.config import GeneratorConfig
from actors.runtime import LocalRuntime
from engine.budget import Account
from engine.cohort import Cohort
from engine.events import AnyTreeEvent, Forked
from engine.granting import Paper
from engine.inference.router import Router
from engine.reports import GeneratorStatistics
from engine.tree import TreeBuilder
from engine.types import GenerateRequest, Prompt, RolloutStatus, SamplingParams, TrajectoryGroup, WeightRef

REVISIT = "revisit"
"""Kind of the requests that ask for prompts of finished trees, and how their names begin."""
KINDS = ("first", "sibling", "fork", "turn")
"""The other requests: first path of a tree, others from its prompt, branches, turns behind tool results."""


@dataclass(frozen=True, kw_only=True)
class Grown:
    """What came of it."""

    log: Log
    groups: list[TrajectoryGroup]
    statistics: list[GeneratorStatistics]
    forked: frozenset[tuple[str, int]]
    """Prompt and number of every path that began as a branch."""

    @property
    def servers(self) -> list[str]:
        """Names of those that were asked anything."""
        return sorted({sent.server for sent in self.log.happenings if isinstance(sent, Sent)})

    @property
    def num_failed(self) -> int:
        """Trajectories that the infrastructure lost: nothing can be concluded where there are some."""
        return sum(t.status is RolloutStatus.FAILED for group in self.groups for t in group.trajectories)

    def kinds(self) -> dict[int, str]:
        """The kind of each request, by its number."""
        found: dict[int, str] = {}
        begun: set[tuple[str, int]] = set()
        for sent in self.log.happenings:
            if isinstance(sent, Sent):
                found[sent.number] = self._kind(sent.request.request_id, begun)
        return found

    def _kind(self, name: str, begun: set[tuple[str, int]]) -> str:
        """Of a request whose name is `prompt/path/length.attempt`."""
        if name.startswith(REVISIT):
            return REVISIT
        prompt_id, number, _ = name.rsplit("/", 2)
        path = prompt_id, int(number)
        if path in begun:
            return "turn"
        begun.add(path)
        return "fork" if path in self.forked else "sibling" if path[1] else "first"


async def grow(materials: Materials, generator: GeneratorConfig, *, folder: Path, seed: int) -> Grown:
    """Start the servers that `generator` describes (or connect to them), and grow all trees on them."""
    config = materials.config(generator)
    log, forked = Log(), set[tuple[str, int]]()

    def emit(event: AnyTreeEvent) -> None:
        if isinstance(event, Forked):
            forked.add((event.prompt_id, event.child))

    async with LocalRuntime(config, folder) as runtime:
        await runtime.start_generators(runtime.model_path)
        recorders = [RecordingGenerator(one, name=one.name, log=log) for one in runtime.generators]
        rollout = runtime.rollouts(Router(recorders), config=config.rollout, seed=seed, emit=emit)

        async def tree(row: int) -> TrajectoryGroup:
            run = Account("run")
            cohort = Cohort(row, size=1, granting=Paper(), leaves=run, tool_calls=run, is_logical=False)
            return await rollout(TreeBuilder(_prompt(runtime, materials, row=row, seed=seed)), cohort)

        async def update(finished: list[TrajectoryGroup]) -> None:
            ref = WeightRef(version=1, path=materials.models[1])
            await asyncio.gather(*(one.update_weights(ref, mode="retract") for one in recorders))
            await _revisit(recorders, log, {group.prompt.prompt_id for group in finished})

        groups = await _in_two_halves(tree, update, count=materials.size.num_trees)
        statistics = [await one.statistics() for one in recorders]
    return Grown(log=log, groups=groups, statistics=statistics, forked=frozenset(forked))


async def _in_two_halves(
    tree: Callable[[int], Awaitable[TrajectoryGroup]],
    update: Callable[[list[TrajectoryGroup]], Awaitable[None]],
    *,
    count: int,
) -> list[TrajectoryGroup]:
    """Grow `count` trees, half of them at a time, with an update when half of them are finished."""
    half = max(count // 2, 1)
    places = asyncio.Semaphore(half)
    finished: list[TrajectoryGroup] = []

    async def one(row: int) -> None:
        async with places:
            finished.append(await tree(row))
        if len(finished) == half:
            await update(finished[:half])

    async with asyncio.TaskGroup() as tasks:
        for row in range(count):
            tasks.create_task(one(row), name=f"tree {row}")
    return finished


async def _revisit(recorders: list[RecordingGenerator], log: Log, prompt_ids: set[str]) -> None:
    """Ask each server for one token behind the longest prompt it was sent of each of these trees."""
    longest: dict[tuple[str, str], GenerateRequest] = {}
    for sent in log.happenings:
        if isinstance(sent, Sent) and sent.request.affinity_key in prompt_ids:
            key = sent.server, sent.request.affinity_key
            if key not in longest or sent.request.token_ids.size > longest[key].token_ids.size:
                longest[key] = sent.request
    servers = {recorder.name: recorder for recorder in recorders}
    for number, ((server, _), request) in enumerate(longest.items()):
        again = msgspec.structs.replace(
            request, request_id=f"{REVISIT}-{number}", affinity_key="", sampling=SamplingParams(max_new_tokens=1)
        )
        async with contextlib.aclosing(servers[server].generate(again)) as chunks:
            async for _ in chunks:
                pass


def _prompt(runtime: LocalRuntime, materials: Materials, *, row: int, seed: int) -> Prompt:
    question = materials.question(Random(f"{seed}/{row}"))
    return Prompt(
        prompt_id=f"e0-r{row}",
        epoch=0,
        row=row,
        token_ids=runtime.renderer.render_prompt(question),
        question=question[-1]["content"],
        ground_truth="",
    )
