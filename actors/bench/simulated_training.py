"""Simulated training: the workload's prompts in batches through four control flows, under the virtual clock.

| arm                | trajectories | generation waits for                                | weights of a batch   |
|--------------------|--------------|------------------------------------------------------|----------------------|
| `barrier_training` | in lock-step | each step                                            | the newest           |
| `barrier_per_step` | asynchronous | each step                                            | the newest           |
| `one_step_off`     | asynchronous | the end of the batch before it, not its step         | one step old         |
| `engine_training`  | asynchronous | a slot: admission behind admission, batch or no batch | up to one step old   |

All have the same learner, batches of the same size, and the same prompts; each runs to the end of its last step, so the
time in which nothing is left to generate is counted. The engine's arm is the real `Controller` and `GroupBuffer`.
"""

import asyncio
from collections.abc import Iterator

import msgspec
import numpy as np

from actors.bench.bench import Record
from actors.bench.simulation import ROLLOUT, Neighbours
from actors.bench.workload import Workload
from engine.clock import run_virtual
from engine.controller import Controller
from engine.faults import ScriptedTrainer
from engine.run_state import RunState
from engine.train_config import TrainConfig
from engine.types import Batch, Prompt, Sample, TrajectoryGroup


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """A learner that takes its time; the workload's prompts are `num_prompts / batch_size` batches."""

    batch_size: int = 16
    step_s: float = 4.0
    publish_s: float = 0.2

    def trainer(self) -> ScriptedTrainer:
        return ScriptedTrainer(step_s=self.step_s, publish_s=self.publish_s)

    def batches(self, workload: Workload) -> list[list[Prompt]]:
        prompts, size = workload.prompts(), self.batch_size
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def engine_training(workload: Workload, training: Training) -> Record:
    """The prompts in batches through controller and buffer, one step ahead of the learner at most."""

    async def main() -> Record:
        parts = Neighbours(workload)
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
            trainer=training.trainer(),
            checkpoint_path=str,
            emit=lambda event: None,
        )
        await controller.run()
        return await parts.record()

    return run_virtual(main())


def barrier_training(workload: Workload, training: Training) -> Record:
    """Roll out in lock-step, wait for all, train, publish, and only then the next batch."""

    async def main() -> Record:
        parts, trainer = Neighbours(workload), training.trainer()
        for step, prompts in enumerate(training.batches(workload), start=1):
            await parts.barrier(prompts).run()
            await _train(trainer, step)
        return await parts.record()

    return run_virtual(main())


def barrier_per_step(workload: Workload, training: Training) -> Record:
    """The same, except that within a batch no trajectory waits for another one."""

    async def main() -> Record:
        parts, trainer = Neighbours(workload), training.trainer()
        for step, prompts in enumerate(training.batches(workload), start=1):
            await parts.grow_all(prompts)
            await _train(trainer, step)
        return await parts.record()

    return run_virtual(main())


def one_step_off(workload: Workload, training: Training) -> Record:
    """A batch is generated while the one before it is trained on, and both are waited for.

    The weights of step n go out when batch n + 1 is whole, so batch n + 2 is the first to be sampled with them.
    """

    async def main() -> Record:
        parts, trainer = Neighbours(workload), training.trainer()
        batches = training.batches(workload)
        await parts.grow_all(batches[0])
        for step, following in enumerate([*batches[1:], None], start=1):
            async with asyncio.TaskGroup() as both:
                both.create_task(trainer.step(Batch(step=step, samples=())), name=f"step {step}")
                if following is not None:
                    both.create_task(parts.grow_all(following), name=f"generate for step {step + 1}")
            await trainer.publish()
        return await parts.record()

    return run_virtual(main())


async def _train(trainer: ScriptedTrainer, step: int) -> None:
    await trainer.step(Batch(step=step, samples=()))
    await trainer.publish()


class WorkloadPrompts:
    """The workload as the data set of a controller."""

    def __init__(self, workload: Workload) -> None:
        self._prompts = workload.prompts()

    def prompts(self, *, start: int = 0) -> Iterator[Prompt]:
        yield from self._prompts[start:]


def no_credit(group: TrajectoryGroup) -> Sample:
    sizes = [group.tree.token_ids(trajectory.leaf).size for trajectory in group.trajectories]
    return Sample(group=group, advantages=tuple(np.zeros(size, np.float32) for size in sizes))
