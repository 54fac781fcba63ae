"""Online: what traffic taught becomes weights; credit, step, publish, as with rollouts, from finished trees of clients.

    store ──finished tree──> offer ──credited──> waiting ──P of them──> step ──> publish ──> generators
                               └─ no signal, or too old: dropped, and counted

| loop | consumes | waits for           | produces         | unblocked by                                        |
|------|----------|---------------------|------------------|-----------------------------------------------------|
| run  | samples  | P of them, for ever | weights, reports | clients; nobody waits for it, so it may wait so long |

Nothing here holds traffic back: what comes while a step runs waits, and the oldest is dropped where too much does.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from engine.batches import Credit, credited
from engine.checkpoints import Checkpoints
from engine.deadline import within
from engine.events import AnyEvent, BatchTaken, StepFinished, WeightsPublished
from engine.interfaces import Generator, Trainer
from engine.run_state import RunState
from engine.train_config import TrainConfig
from engine.types import Batch, Sample, TrajectoryGroup, Version

logger = logging.getLogger(__name__)

HELD_BATCHES = 8
"""Batches that may wait; what is older is staler, and goes first."""


class OnlineTraining:
    """Trains on what it is offered. `offer` may be called at any time, `run` once."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        batch_size: int,
        state: RunState,
        credit: Credit,
        credit_batch: Callable[[Sequence[Sample]], Sequence[Sample]],
        trainer: Trainer,
        generators: Sequence[Generator],
        checkpoint_path: Callable[[int], str],
        emit: Callable[[AnyEvent], None],
    ) -> None:
        """`state` is what the journal of earlier processes came to: training goes on from their last checkpoint."""
        self._config = config
        self._batch_size = batch_size
        self._credit = credit
        self._credit_batch = credit_batch
        self._trainer = trainer
        self._generators = generators
        self._emit = emit
        self._checkpoints = Checkpoints(
            state, trainer=trainer, every=config.checkpoint_every, path_of=checkpoint_path, emit=emit
        )
        self._waiting: deque[Sample] = deque(maxlen=HELD_BATCHES * batch_size)
        self._arrived = asyncio.Event()
        self.version: Version = 0
        """Of the weights that every generator samples with."""
        self.num_steps = 0
        self.num_refused = 0
        """Trees without a signal, or that cannot be trained."""
        self.num_stale = 0
        """Trees that were older than `train.max_staleness` allows when their turn came."""

    def offer(self, group: TrajectoryGroup) -> None:
        """A finished tree; it is trained on, or dropped."""
        sample, reason = credited(self._credit, group)
        if sample is None:
            self.num_refused += 1
            logger.info("%s is not trained: %s", group.prompt.prompt_id, reason)
            return
        self._waiting.append(sample)
        self._arrived.set()

    def drop(self, prompt_id: str) -> None:
        """Forget a tree that waits: it was deleted."""
        kept = [sample for sample in self._waiting if sample.group.prompt.prompt_id != prompt_id]
        self._waiting.clear()
        self._waiting.extend(kept)

    async def run(self) -> None:
        """Train until it is cancelled, or `train.steps` are done."""
        self.num_steps = await self._checkpoints.load()
        if self.num_steps:
            await self._publish(())
        while self._config.steps is None or self.num_steps < self._config.steps:
            started = asyncio.get_running_loop().time()
            samples = await self._take()
            await self._step(samples, wait_s=asyncio.get_running_loop().time() - started)
        await self._checkpoints.save_if_due(self.num_steps, version=self.version, is_last=True)

    async def _take(self) -> list[Sample]:
        """The next batch, oldest first, of samples that are fresh enough."""
        while True:
            fresh = [sample for sample in self._waiting if self._is_fresh(sample)]
            self.num_stale += len(self._waiting) - len(fresh)
            self._waiting.clear()
            self._waiting.extend(fresh)
            if len(fresh) >= self._batch_size:
                return [self._waiting.popleft() for _ in range(self._batch_size)]
            self._arrived.clear()
            await self._arrived.wait()

    def _is_fresh(self, sample: Sample) -> bool:
        return self.version - sample.group.oldest_version <= self._config.max_staleness

    async def _step(self, samples: Sequence[Sample], *, wait_s: float) -> None:
        step, deadline_s = self.num_steps + 1, self._config.step_timeout_s
        names = tuple(sample.group.prompt.prompt_id for sample in samples)
        self._emit(BatchTaken(step=step, prompt_ids=names, wait_s=wait_s))
        batch = Batch(step=step, samples=tuple(self._credit_batch(samples)))
        report = await within(deadline_s, self._trainer.step(batch), name=f"the learner's step {step}")
        self._emit(StepFinished(report=report))
        self.num_steps = step
        await self._publish(names)
        await self._checkpoints.save_if_due(step, version=self.version, is_last=False)

    async def _publish(self, names: tuple[str, ...]) -> None:
        deadline_s = self._config.step_timeout_s
        ref = await within(deadline_s, self._trainer.publish(), name="publishing weights")
        async with asyncio.TaskGroup() as updates:
            for number, generator in enumerate(self._generators):
                update = generator.update_weights(ref, mode=self._config.update_mode)
                name = f"the weight update of generator {number}"
                updates.create_task(within(deadline_s, update, name=name), name=name)
        self.version = ref.version
        self._emit(WeightsPublished(version=ref.version, step=self.num_steps, prompt_ids=names))
