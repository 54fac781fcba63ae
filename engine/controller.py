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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol

from engine.budget import Account
from engine.buffer import GroupBuffer
from engine.cohort import Cohort
from engine.events import (
    AnyEvent,
    BatchTaken,
    Checkpointed,
    Evaluated,
    GroupRefused,
    PromptAdmitted,
    RunFinished,
    StepFinished,
    WeightsPublished,
)
from engine.interfaces import Generator, Trainer
from engine.rollout_config import RolloutConfig
from engine.run_state import CohortUse, RunState
from engine.train_config import TrainConfig, check_deterministic
from engine.tree import TreeBuilder
from engine.types import Batch, Prompt, Sample, TrajectoryGroup

logger = logging.getLogger(__name__)

REFUSALS_WORTH_A_WARNING = 32
"""Refusals in a row after which a person should look at the rewards."""


class Prompts(Protocol):
    """What the controller needs of a data set."""

    def prompts(self, *, start: int = 0) -> Iterator[Prompt]:
        """Prompts from a position on; positions count rows, also those that are skipped."""
        ...

    def position_of(self, prompt: Prompt) -> int: ...


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
        credit: Callable[[TrajectoryGroup], Sample | None],
        generators: Sequence[Generator],
        trainer: Trainer,
        checkpoint_path: Callable[[int], str],
        emit: Callable[[AnyEvent], None],
        evaluate: Callable[[], Awaitable[dict[str, float]]] | None = None,
    ) -> None:
        """`rollout` grows a tree and emits its events; `credit` says None for a group without a learning signal.

        Raises `ConfigError` where a deterministic run is asked for and cannot be.
        """
        check_deterministic(config, rollout_config)
        self._config = config
        self._rollout_config = rollout_config
        self._state = state
        self._prompts = prompts
        self._rollout = rollout
        self._credit = credit
        self._generators = generators
        self._trainer = trainer
        self._checkpoint_path = checkpoint_path
        self._emit = emit
        self._evaluate = evaluate
        self._buffer = GroupBuffer(
            batch_size=config.batch_size,
            max_staleness=config.max_staleness,
            version=state.version,
            by_cohort=config.deterministic,
        )
        self._samples: dict[str, Sample] = {}
        self._cohorts: dict[int, Cohort] = {}
        used = state.used.values()
        self._run_leaves = Account("run", spent=sum(use.num_leaves for use in used))
        limit = rollout_config.budget.calls_per_run
        self._run_calls = Account("run", limit=limit, spent=sum(use.num_calls for use in used))
        self._num_wanted = state.num_admitted - state.num_refused
        """Groups admitted and not refused: what the remaining steps can be made of."""
        self._num_saved = 0 if state.checkpoint is None else state.checkpoint.step
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

    # -- resuming ---------------------------------------------------------------------------------------------

    async def _resume(self) -> None:
        """Bring learner and generators to where the events end: the last checkpoint, then the batches since."""
        state = self._state
        if state.checkpoint is not None:
            await self._trainer.load(state.checkpoint.path)
        for step, groups in sorted(state.batches.items()):
            report = await self._trainer.step(self._batch(step, groups)) if groups else None
            if report is not None and step not in state.reports:
                self._emit(StepFinished(report=report))
        if state.step or state.checkpoint is not None:
            published = [name for name in state.admissions if name not in state.trees and name not in state.groups]
            await self._publish(published)
        if self._config.deterministic:
            for name, admitted in state.refused.items():
                self._buffer.restore(name, version=admitted.version, cohort=admitted.cohort)
                await self._buffer.refuse(name)
        for group in state.groups.values():
            admitted = state.admissions[group.prompt.prompt_id]
            self._buffer.restore(admitted.prompt_id, version=admitted.version, cohort=admitted.cohort)
            await self._settle(group)

    def _batch(self, step: int, groups: Sequence[TrajectoryGroup]) -> Batch:
        samples: list[Sample] = []
        for group in groups:
            sample = self._samples.pop(group.prompt.prompt_id, None) or self._credit(group)
            assert sample is not None, "a group without signal is refused before it can be taken"
            samples.append(sample)
        return Batch(step=step, samples=tuple(samples))

    # -- producing --------------------------------------------------------------------------------------------

    async def _produce(self) -> None:
        """Keep every slot busy: interrupted trees first, then fresh prompts, until no more are wanted."""
        async with asyncio.TaskGroup() as rollouts:
            for name, tree in self._state.trees.items():
                admitted = self._state.admissions[name]
                self._buffer.restore(name, version=admitted.version, cohort=admitted.cohort)
                cohort = self._cohort(admitted.cohort)
                rollouts.create_task(self._roll(tree, cohort), name=f"rollout {name}")
            last = self._state.last_prompt
            for prompt in self._prompts.prompts(start=0 if last is None else self._prompts.position_of(last) + 1):
                if not await self._is_wanted():
                    break
                slot = await self._buffer.admit(prompt.prompt_id)
                self._num_wanted += 1
                self._emit(
                    PromptAdmitted(prompt_id=prompt.prompt_id, prompt=prompt, version=slot.version, cohort=slot.cohort)
                )
                cohort = self._cohort(slot.cohort)
                rollouts.create_task(self._roll(TreeBuilder(prompt), cohort), name=f"rollout {prompt.prompt_id}")
            self._is_produced = True
            for cohort in self._cohorts.values():
                cohort.seal()
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
        sample = self._credit(group)
        if sample is None:
            self._emit(GroupRefused(prompt_id=prompt_id, reason="no learning signal"))
            self._num_wanted -= 0 if self._config.deterministic else 1
            self._num_refused_in_a_row += 1
            if self._num_refused_in_a_row % REFUSALS_WORTH_A_WARNING == 0:
                logger.warning("%d groups in a row without a learning signal", self._num_refused_in_a_row)
            await self._buffer.refuse(prompt_id)
        else:
            self._num_refused_in_a_row = 0
            self._samples[prompt_id] = sample
            await self._buffer.finish(group)
        await self._notify()

    def _cohort(self, number: int) -> Cohort:
        """The cohort of that number; those whose trees are all gone are forgotten."""
        budget = self._rollout_config.budget
        if number not in self._cohorts:
            self._cohorts = {n: c for n, c in self._cohorts.items() if not c.is_over}
            name, use = f"cohort {number}", self._state.used.get(number, CohortUse())
            self._cohorts[number] = Cohort(
                number,
                size=self._config.batch_size - use.num_trees,
                granting=self._rollout_config.granting,
                leaves=Account(name, limit=budget.leaves_per_cohort, parent=self._run_leaves, spent=use.num_leaves),
                tool_calls=Account(name, limit=budget.calls_per_cohort, parent=self._run_calls, spent=use.num_calls),
                is_logical=self._config.deterministic,
            )
        return self._cohorts[number]

    # -- training ---------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        step = self._state.step
        await self._close_step(step, is_last=False)
        while self._config.steps is None or step < self._config.steps:
            groups = await self._buffer.take()
            if groups is None:
                logger.info("the data ended after step %d", step)
                break
            step += 1
            names = tuple(group.prompt.prompt_id for group in groups)
            self._emit(BatchTaken(step=step, prompt_ids=names))
            if groups:
                self._emit(StepFinished(report=await self._trainer.step(self._batch(step, groups))))
            if self._config.deterministic:
                await self._quiet()
            await self._publish(names)
            await self._close_step(step, is_last=False)
        await self._close_step(step, is_last=True)

    async def _close_step(self, step: int, *, is_last: bool) -> None:
        """Make the checkpoint and the evaluation that are due behind a step, unless they are there already."""
        version, every = self._buffer.version, self._config.eval_every
        if step > self._num_saved and (is_last or step % self._config.checkpoint_every == 0):
            path = self._checkpoint_path(step)
            await self._trainer.save(path)
            self._emit(Checkpointed(step=step, version=version, path=path))
            self._num_saved = step
        if self._evaluate and every and step > self._num_evaluated and (is_last or step % every == 0):
            self._emit(Evaluated(step=step, version=version, metrics=await self._evaluate()))
            self._num_evaluated = step

    async def _publish(self, names: Sequence[str]) -> None:
        """Weights first, slots afterwards: no group is ever born under weights older than its slot says."""
        ref = await self._trainer.publish()
        async with asyncio.TaskGroup() as updates:
            for number, generator in enumerate(self._generators):
                update = generator.update_weights(ref, mode=self._config.update_mode)
                updates.create_task(update, name=f"update generator {number}")
        self._emit(WeightsPublished(version=ref.version, prompt_ids=tuple(names)))
        await self._buffer.release(version=ref.version)

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
