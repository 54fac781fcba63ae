"""Controller: generation and training side by side, joined by the buffer.

    data ──> admit ──> rollout tasks ──> credit ──> buffer ──> take ──> learner step ──> publish ──> generators
               ↑                                                                            │
               └───────────────────────────── release, after the weights have arrived ─────┘

| loop    | consumes        | waits for              | produces         | unblocked by                                |
|---------|-----------------|------------------------|------------------|---------------------------------------------|
| produce | data set        | a slot; a wanted group | rollout tasks    | release, refusals, the end of training      |
| rollout | one prompt      | generator, tools       | a group, events  | their deadlines (see `rollout`)             |
| train   | finished groups | the buffer             | weights, reports | rollouts, which need no training to finish  |

No loop catches what it does not understand: a bad rollout is data, a bad loop ends the run.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from engine.batches import Batches, Credit, digest, names_of
from engine.buffer import GroupBuffer
from engine.checkpoints import Checkpoints
from engine.cohort import Cohort
from engine.cohorts import Cohorts
from engine.deadline import within
from engine.errors import DataError, GeneratorError
from engine.events import (
    AnyEvent,
    BatchTaken,
    Evaluated,
    GroupRefused,
    PromptAdmitted,
    RunFinished,
    StepFinished,
    WeightsPublished,
)
from engine.generator_load import measured
from engine.interfaces import Generator, Prompts, Trainer
from engine.rollout_config import RolloutConfig
from engine.run_state import RunState
from engine.train_config import TrainConfig, check_deterministic
from engine.tree import TreeBuilder
from engine.types import Batch, RolloutStatus, Sample, TrajectoryGroup

logger = logging.getLogger(__name__)

REFUSALS_WORTH_A_WARNING = 32
"""Refusals in a row after which a person should look at the rewards."""
FAILURES_THAT_END = 3
"""Groups in a row without one path that worked."""


class Controller:
    """Runs one training run from a (fresh or resumed) state to its end. Used once."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        rollout_config: RolloutConfig,
        state: RunState,
        prompts: Prompts,
        rollout: Callable[[TreeBuilder, Cohort], Awaitable[TrajectoryGroup]],
        credit: Credit,
        generators: Sequence[Generator],
        trainer: Trainer,
        checkpoint_path: Callable[[int], str],
        emit: Callable[[AnyEvent], None],
        evaluate: Callable[[], Awaitable[dict[str, float]]] | None = None,
        credit_batch: Callable[[Sequence[Sample]], Sequence[Sample]] = tuple,
    ) -> None:
        """`rollout` grows a tree and emits its events.

        `credit_batch` finishes the samples of a step, all at once and in their order. Both are pure functions.

        Raises `ConfigError` where a deterministic run is asked for and cannot be.
        """
        check_deterministic(config, rollout_config)
        self._config = config
        self._deadline_s = config.step_timeout_s
        self._state = state
        self._prompts = prompts
        self._rollout = rollout
        self._batches = Batches(credit, credit_batch)
        self._generators = generators
        self._trainer = trainer
        self._checkpoints = Checkpoints(
            state, trainer=trainer, every=config.checkpoint_every, path_of=checkpoint_path, emit=emit
        )
        self._emit = emit
        self._evaluate = evaluate
        self._buffer = GroupBuffer(
            batch_size=config.batch_size,
            max_staleness=config.max_staleness,
            version=state.version,
            num_admitted=state.num_admitted,
            by_cohort=config.deterministic,
        )
        self._cohorts = Cohorts(
            rollout_config, size=config.batch_size, is_logical=config.deterministic, used=state.usage
        )
        self._num_wanted = state.num_admitted - (0 if config.deterministic else state.num_refused)
        """Groups the steps can be made of: admitted and not refused; by cohort, refused ones are not replaced."""
        self._num_failed_in_a_row = 0
        self._num_evaluated = max(state.evaluated_step, 0)
        self._num_refused_in_a_row = 0
        self._is_produced = False
        self._moved = asyncio.Condition()
        """Notified when a group is refused or finished, or admission stops."""

    async def run(self) -> None:
        """Train to the end. Cancelling stops at once; the journal holds what is needed to go on."""
        await self._resume()
        async with asyncio.TaskGroup() as tasks:
            producing = tasks.create_task(self._produce(), name="produce")
            await self._train()
            producing.cancel()
        self._emit(RunFinished())

    @property
    def num_reserved(self) -> int:
        """What is set aside in the budgets; 0 when no rollout runs."""
        return self._cohorts.num_reserved

    # -- resuming ---------------------------------------------------------------------------------------------

    async def _resume(self) -> None:
        """Bring learner, generators and slots to where the events end.

        The learner takes the last checkpoint and the batches published since. A batch that was taken and not published
        is the first one `_train` works on: what generates meanwhile keeps the weights it had.
        """
        state = self._state
        loaded = await self._checkpoints.load()
        if gone := [step for step in range(loaded + 1, state.published_step + 1) if step not in state.batches]:
            raise DataError(
                f"the newest checkpoint that is whole is that of step {loaded}, and what was trained from step "
                f"{gone[0]} on is no longer in the journal"
            )
        for step in sorted(state.batches):
            if loaded < step <= state.published_step:
                await self._train_on(self._known_batch(step))
                await self._checkpoints.mend(step)
        if state.published_step:
            await self._publish(state.published_step, ())
        held = [*state.admissions.values(), *(state.refused.values() if self._config.deterministic else ())]
        taken = {group.prompt.prompt_id for group in state.batches.get(state.step, ())}
        for slot in sorted(held, key=lambda admitted: admitted.index):
            is_taken = slot.prompt_id in taken or (slot.prompt_id in state.refused and slot.cohort < state.step)
            self._buffer.restore(slot.prompt_id, index=slot.index, version=slot.version, is_taken=is_taken)
        if self._config.deterministic:
            for name in state.refused:
                await self._buffer.refuse(name)
        for group in state.groups.values():
            await self._settle(group)

    async def _train_on(self, batch: Batch) -> None:
        """One optimiser step; its report is an event, once."""
        if not batch.samples:
            return
        report = await within(self._deadline_s, self._trainer.step(batch), name=f"the learner's step {batch.step}")
        if batch.step not in self._state.reports:
            self._emit(StepFinished(report=report))

    def _known_batch(self, step: int) -> Batch:
        """A batch of an earlier process again."""
        return self._batches.again(step, self._state.batches[step], expected=self._state.digests[step])

    # -- producing --------------------------------------------------------------------------------------------

    async def _produce(self) -> None:
        """Keep every slot busy: interrupted trees first, then fresh prompts, until no more are wanted."""
        async with asyncio.TaskGroup() as rollouts:
            for name, tree in self._state.trees.items():
                cohort = self._cohorts[self._state.admissions[name].cohort]
                rollouts.create_task(self._roll(tree, cohort), name=f"rollout {name}")
            last = self._state.last_prompt
            for prompt in self._prompts.prompts(start=0 if last is None else self._prompts.position_of(last) + 1):
                if not await self._is_wanted():
                    break
                slot = await self._buffer.admit(prompt.prompt_id)
                self._num_wanted += 1
                self._emit(
                    PromptAdmitted(
                        prompt_id=prompt.prompt_id,
                        prompt=prompt,
                        version=slot.version,
                        index=slot.index,
                        cohort=slot.cohort,
                    )
                )
                cohort = self._cohorts[slot.cohort]
                rollouts.create_task(self._roll(TreeBuilder(prompt), cohort), name=f"rollout {prompt.prompt_id}")
            self._is_produced = True
            self._cohorts.seal()
            await self._notify()
        await self._buffer.close()

    async def _is_wanted(self) -> bool:
        """Wait until the remaining steps need another group; False when they never will."""
        if self._config.steps is None:
            return True
        needed = self._config.steps * self._config.batch_size

        def is_decided() -> bool:
            return self._num_wanted < needed or self._buffer.num_running == 0

        async with self._moved:
            await self._moved.wait_for(is_decided)
        return self._num_wanted < needed

    async def _roll(self, tree: TreeBuilder, cohort: Cohort) -> None:
        await self._settle(await self._rollout(tree, cohort))

    async def _settle(self, group: TrajectoryGroup) -> None:
        """Give a finished group its credit, or refuse it."""
        prompt_id = group.prompt.prompt_id
        self._count_failures(group)
        if reason := self._batches.refuses(group):
            self._emit(GroupRefused(prompt_id=prompt_id, reason=reason))
            self._num_wanted -= 0 if self._config.deterministic else 1
            self._num_refused_in_a_row += 1
            if self._num_refused_in_a_row % REFUSALS_WORTH_A_WARNING == 0:
                logger.warning("%d groups in a row without a learning signal", self._num_refused_in_a_row)
            await self._buffer.refuse(prompt_id)
        else:
            self._num_refused_in_a_row = 0
            await self._buffer.finish(group)
        await self._notify()

    def _count_failures(self, group: TrajectoryGroup) -> None:
        """One group of nothing but failures is data; several in a row are a broken world, and would burn prompts."""
        failed = [t for t in group.trajectories if t.status is RolloutStatus.FAILED]
        self._num_failed_in_a_row = self._num_failed_in_a_row + 1 if len(failed) == len(group.trajectories) else 0
        if self._num_failed_in_a_row == FAILURES_THAT_END:
            raise GeneratorError(f"every path of {FAILURES_THAT_END} groups in a row failed: {failed[0].reward.reason}")

    # -- training ---------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        step = self._state.step
        if step > self._state.published_step:
            await self._finish_step(self._known_batch(step))
        await self._close_step(step, is_last=False)
        while self._config.steps is None or step < self._config.steps:
            started = asyncio.get_running_loop().time()
            groups = await self._buffer.take()
            if groups is None:
                logger.info("the data ended after step %d", step)
                break
            step += 1
            batch = self._batches.make(step, groups)
            wait_s = asyncio.get_running_loop().time() - started
            self._emit(BatchTaken(step=step, prompt_ids=names_of(batch), wait_s=wait_s, digest=digest(batch)))
            await self._finish_step(batch)
            await self._close_step(step, is_last=False)
        await self._close_step(step, is_last=True)

    async def _finish_step(self, batch: Batch) -> None:
        """Train on a batch that was taken, publish, and free its slots."""
        await self._train_on(batch)
        if self._config.deterministic:
            await self._quiet()
        await self._publish(batch.step, names_of(batch))

    async def _close_step(self, step: int, *, is_last: bool) -> None:
        """Make the checkpoint and the evaluation that are due behind a step, unless they are there already."""
        version, every = self._buffer.version, self._config.eval_every
        await self._checkpoints.save_if_due(step, version=version, is_last=is_last)
        if self._evaluate and every and step > self._num_evaluated and (is_last or step % every == 0):
            self._emit(Evaluated(step=step, version=version, metrics=await self._evaluate()))
            self._num_evaluated = step

    async def _publish(self, step: int, names: Sequence[str]) -> None:
        """Weights first, slots afterwards: no group is ever born under weights older than its slot says."""
        ref = await within(self._deadline_s, self._trainer.publish(), name="publishing weights")
        async with asyncio.TaskGroup() as updates:
            for number, generator in enumerate(self._generators):
                name = f"the weight update of generator {number}"
                update = generator.update_weights(ref, mode=self._config.update_mode)
                updates.create_task(within(self._deadline_s, update, name=name), name=name)
        self._emit(WeightsPublished(version=ref.version, step=step, prompt_ids=tuple(names)))
        await self._buffer.release(version=ref.version)
        self._emit(await measured(self._generators))

    async def _quiet(self) -> None:
        """Wait until all slots are taken (or nothing is left to admit) and no rollout runs."""

        def is_quiet() -> bool:
            is_full = self._buffer.num_free == 0 or self._is_produced
            return is_full and self._buffer.num_running == 0

        async with self._moved:
            await self._moved.wait_for(is_quiet)

    async def _notify(self) -> None:
        async with self._moved:
            self._moved.notify_all()
