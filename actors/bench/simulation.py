"""Simulation: the engine's control flow and the released one, on one workload under the virtual clock.

The engine's arms are the real `TreeRollout`, `Cohort`, `Executor`, and with training `Controller` and `GroupBuffer`.
Both sides have the same slots, workers, renderer and executor, M and N, and the same rule: a path branches at its tool
result when its coin is at most 1/2, while there are fewer than M. Path p of a prompt makes the same calls after the
same segments on both sides. What differs is order: which paths get the last places under M, and so what number a
branch has. The total work is therefore equal in law, not call by call; the records hold it (`slot_s`, `worker_s`).
"""

import asyncio
from collections.abc import Awaitable, Iterator, Sequence

import msgspec
import numpy as np

from actors.bench.barrier import BarrierRollout
from actors.bench.bench import Record
from actors.bench.workload import Workload
from engine.branching import Official
from engine.budget import Account
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.controller import Controller, TrainConfig
from engine.faults import ScriptedTrainer
from engine.granting import Paper
from engine.inference.scripted import ScriptedGenerator
from engine.renderer import Renderer
from engine.rollout import TreeRollout
from engine.rollout_config import BudgetConfig, RolloutConfig
from engine.run_state import RunState
from engine.tree import TreeBuilder
from engine.types import Batch, NodeKind, Prompt, Sample, TrajectoryGroup
from tools.executor import Executor

SIZE, INITIAL = 16, 8
"""M and N of the paper."""
ROLLOUT = RolloutConfig(size=SIZE, branching=Official(initial=INITIAL), budget=BudgetConfig(calls_per_path=None))


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """A learner that takes its time; the workload's prompts are `num_prompts / batch_size` batches."""

    batch_size: int = 16
    step_s: float = 4.0
    publish_s: float = 0.2


class _Neighbours:
    """What both control flows talk to, made inside a running loop."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.generator: ScriptedGenerator = workload.generator()
        self.tools: Executor = workload.tools()
        self.renderer: Renderer = workload.renderer(self.tools)

    def grow(self, tree: TreeBuilder, cohort: Cohort) -> Awaitable[TrajectoryGroup]:
        return TreeRollout(
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


def engine_rollout(workload: Workload) -> Record:
    """All prompts at once through the engine.

    `bound_s` is what no control flow can beat for the same work: the largest of slot-seconds per slot, worker-seconds
    per worker, and the longest path with nothing to wait for. `fraction_of_bound` is that over the makespan.
    """

    async def main() -> Record:
        parts = _Neighbours(workload)
        trees = [TreeBuilder(prompt) for prompt in workload.prompts()]
        cohort = Cohort(
            0, size=len(trees), granting=Paper(), leaves=Account("all"), tool_calls=Account("all"), is_logical=False
        )
        async with asyncio.TaskGroup() as tasks:
            for tree in trees:
                tasks.create_task(parts.grow(tree, cohort), name=tree.prompt.prompt_id)
        record = await parts.record()
        law = workload.law
        longest_s = max(critical_s(workload, tree) for tree in trees)
        bound_s = max(record["slot_s"] / law.num_slots, record["worker_s"] / law.num_workers, longest_s)
        fraction = bound_s / record["makespan_s"]
        return {**record, "longest_path_s": longest_s, "bound_s": bound_s, "fraction_of_bound": fraction}

    return run_virtual(main())


def barrier_rollout(workload: Workload) -> Record:
    """All prompts in one batch through the released control flow."""

    async def main() -> Record:
        parts = _Neighbours(workload)
        rollout = parts.barrier(workload.prompts())
        await rollout.run()
        return {**await parts.record(), "rounds": float(rollout.num_rounds)}

    return run_virtual(main())


def engine_training(workload: Workload, training: Training) -> Record:
    """The prompts in batches through controller and buffer, one step ahead of the learner at most."""

    async def main() -> Record:
        parts = _Neighbours(workload)
        controller = Controller(
            config=TrainConfig(
                batch_size=training.batch_size, max_staleness=1, checkpoint_every=workload.law.num_prompts
            ),
            rollout_config=ROLLOUT,
            state=RunState(),
            prompts=WorkloadPrompts(workload),
            rollout=parts.grow,
            credit=no_credit,
            generators=[parts.generator],
            trainer=ScriptedTrainer(step_s=training.step_s, publish_s=training.publish_s),
            checkpoint_path=str,
            emit=lambda event: None,
        )
        await controller.run()
        return await parts.record()

    return run_virtual(main())


def barrier_training(workload: Workload, training: Training) -> Record:
    """The prompts in batches: roll out, wait for all, train, publish, and only then the next batch."""

    async def main() -> Record:
        parts = _Neighbours(workload)
        trainer = ScriptedTrainer(step_s=training.step_s, publish_s=training.publish_s)
        prompts, size = workload.prompts(), training.batch_size
        for step, start in enumerate(range(0, len(prompts), size), start=1):
            await parts.barrier(prompts[start : start + size]).run()
            await trainer.step(Batch(step=step, samples=()))
            await trainer.publish()
        return await parts.record()

    return run_virtual(main())


def critical_s(workload: Workload, tree: TreeBuilder) -> float:
    """Seconds of the longest path of a finished tree if it never waited for a slot or a worker."""
    frozen = tree.group().tree

    def seconds(path: int, leaf: int) -> float:
        nodes = [frozen.nodes[index] for index in frozen.path_to(leaf)]
        num_sampled = sum(node.token_ids.size for node in nodes if node.kind is NodeKind.SAMPLED)
        return num_sampled * workload.law.token_s + sum(r.duration_s for r in tree.paths[path].results.values())

    return max(seconds(t.path, t.leaf) for t in tree.group().trajectories)


class WorkloadPrompts:
    """The workload as the data set of a controller."""

    def __init__(self, workload: Workload) -> None:
        self._prompts = workload.prompts()

    def prompts(self, *, start: int = 0) -> Iterator[Prompt]:
        yield from self._prompts[start:]


def no_credit(group: TrajectoryGroup) -> Sample:
    sizes = [group.tree.token_ids(trajectory.leaf).size for trajectory in group.trajectories]
    return Sample(group=group, advantages=tuple(np.zeros(size, np.float32) for size in sizes))
