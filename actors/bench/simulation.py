"""Simulation: the engine's control flow and the released one, on one workload under the virtual clock.

The engine's arms are the real `TreeRollout`, `Cohort` and `Executor`. Both sides have the same slots, workers, renderer
and executor, M and N, and the same rule: a path branches at its tool result when its coin is at most 1/2, while there
are fewer than M. Path p of a prompt makes the same calls after the same segments on both sides. What differs is order:
which paths get the last places under M, and so what number a branch has. The total work is therefore equal in law, not
call by call; the records hold it (`slot_s`, `worker_s`). `simulated_training` has the arms with training behind them.
"""

import asyncio
from collections.abc import Sequence

from actors.bench.barrier import BarrierRollout
from actors.bench.bench import Record, Timeline
from actors.bench.bounds import bounds, plan_of
from actors.bench.workload import Workload
from engine.branching import Official
from engine.budget import Account
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.granting import Paper
from engine.inference.scripted import ScriptedGenerator
from engine.outlook import Outlook
from engine.renderer import Renderer
from engine.rollout import TreeRollout
from engine.rollout_config import BudgetConfig, Order, RolloutConfig
from engine.tree import TreeBuilder
from engine.types import NodeKind, Prompt, TrajectoryGroup
from tools.executor import Executor

SIZE, INITIAL = 16, 8
"""M and N of the paper."""
ROLLOUT = RolloutConfig(size=SIZE, branching=Official(initial=INITIAL), budget=BudgetConfig(calls_per_path=None))
NUM_PARTS = 50
"""Equal parts of a makespan in a timeline."""


class Neighbours:
    """What all control flows talk to, made inside a running loop."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.generator: ScriptedGenerator = workload.generator()
        self.tools: Executor = workload.tools()
        self.renderer: Renderer = workload.renderer(self.tools)

    async def grow(self, tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
        return await TreeRollout(
            tree,
            config=ROLLOUT,
            seed=self.workload.seed,
            cohort=cohort,
            generator=self.generator,
            tools=self.tools,
            renderer=self.renderer,
            vocab_size=self.workload.vocab_size,
            emit=lambda event: None,
        ).run()

    async def grow_all(self, prompts: Sequence[Prompt], *, outlook: Outlook | None = None) -> list[TreeBuilder]:
        """All of them at once, as one cohort, to the end of the last; without an outlook, first come, first served."""
        trees = [TreeBuilder(prompt) for prompt in prompts]
        cohort = Cohort(
            0,
            size=len(trees),
            granting=Paper(),
            leaves=Account("all"),
            tool_calls=Account("all"),
            is_logical=False,
            outlook=outlook,
        )
        async with asyncio.TaskGroup() as tasks:
            for tree in trees:
                tasks.create_task(self.grow(tree, cohort), name=tree.prompt.prompt_id)
        return trees

    def barrier(self, prompts: Sequence[Prompt]) -> BarrierRollout:
        return BarrierRollout(
            prompts,
            size=SIZE,
            initial=INITIAL,
            seed=self.workload.seed,
            generator=self.generator,
            tools=self.tools,
            renderer=self.renderer,
        )

    async def record(self) -> Record:
        """Seconds since the loop began, and the work that was done."""
        law = self.workload.law
        makespan_s = asyncio.get_running_loop().time()
        slot_s = (await self.generator.statistics()).num_sampled_tokens * law.token_s
        worker_s = self.tools.statistics().tools["search"].busy_s
        return {
            "makespan_s": makespan_s,
            "slot_s": slot_s,
            "worker_s": worker_s,
            "slots_busy": slot_s / law.num_slots / makespan_s,
            "workers_busy": worker_s / law.num_workers / makespan_s,
        }


def engine_rollout(workload: Workload, *, order: Order = ROLLOUT.order) -> Record:
    """All prompts at once through the engine, and what other orders would have come to with the same work.

    `fraction_of_bound` is what no control flow can beat over the makespan, `fraction_of_blind` what no order can be
    expected to beat that does not know how long calls take (see `bounds`).
    """

    async def main() -> Record:
        parts = Neighbours(workload)
        outlook = Outlook() if order == "longest_expected" else None
        trees = await parts.grow_all(workload.prompts(), outlook=outlook)
        record = await parts.record()
        law = workload.law
        longest_s = max(critical_s(workload, tree) for tree in trees)
        plan = plan_of(trees, token_s=law.token_s)
        found = bounds(plan, num_slots=law.num_slots, num_workers=law.num_workers, longest_s=longest_s)
        return {
            **record,
            "longest_path_s": longest_s,
            **found,
            "fraction_of_bound": found["bound_s"] / record["makespan_s"],
            "fraction_of_blind": found["blind_s"] / record["makespan_s"],
            "blind_fraction_of_bound": found["bound_s"] / found["blind_s"],
            "clairvoyant_fraction_of_bound": found["bound_s"] / found["clairvoyant_s"],
        }

    return run_virtual(main())


def barrier_rollout(workload: Workload) -> Record:
    """All prompts in one batch through the released control flow."""

    async def main() -> Record:
        parts = Neighbours(workload)
        rollout = parts.barrier(workload.prompts())
        await rollout.run()
        return {**await parts.record(), "rounds": float(rollout.num_rounds)}

    return run_virtual(main())


def timeline(workload: Workload, *, makespan_s: float) -> Timeline:
    """How busy slots and workers were in each part of a run that has ended."""
    law = workload.law
    places = {"slots": law.num_slots, "workers": law.num_workers}
    return Timeline(
        seed=workload.seed,
        seconds=makespan_s,
        busy={
            what: _shares(workload.occupied[what], makespan_s=makespan_s, num_places=num)
            for what, num in places.items()
        },
    )


def _shares(services: Sequence[tuple[float, float]], *, makespan_s: float, num_places: int) -> list[float]:
    part_s = makespan_s / NUM_PARTS
    busy_s = [0.0] * NUM_PARTS
    for begin, end in services:
        for part in range(int(begin / part_s), min(int(end / part_s), NUM_PARTS - 1) + 1):
            busy_s[part] += max(min(end, (part + 1) * part_s) - max(begin, part * part_s), 0.0)
    return [seconds / part_s / num_places for seconds in busy_s]


def critical_s(workload: Workload, tree: TreeBuilder) -> float:
    """Seconds of the longest path of a finished tree if it never waited for a slot or a worker."""
    frozen = tree.group().tree

    def seconds(path: int, leaf: int) -> float:
        nodes = [frozen.nodes[index] for index in frozen.path_to(leaf)]
        num_sampled = sum(node.token_ids.size for node in nodes if node.kind is NodeKind.SAMPLED)
        return num_sampled * workload.law.token_s + sum(r.duration_s for r in tree.paths[path].results.values())

    return max(seconds(t.path, t.leaf) for t in tree.group().trajectories)
