"""A whole control plane with scripted neighbours, under the virtual clock: what tests of the loops run."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.branching import Arpo
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.controller import Controller
from engine.errors import LearnerError
from engine.events import AnyEvent
from engine.faults import ScriptedTrainer
from engine.inference.scripted import ScriptedGenerator, random_script
from engine.renderer import RendererConfig, make_renderer
from engine.reports import GeneratorStatistics
from engine.rollout import TreeRollout
from engine.rollout_config import BudgetConfig, RolloutConfig
from engine.run_state import RunState
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.train_config import TrainConfig
from engine.tree import TreeBuilder
from engine.types import Prompt, Reward, Sample, TrajectoryGroup
from tools.faults import ScriptedTools


def words(folder: Path) -> HfTokenizer:
    """The tokenizer of these worlds, made in `folder`."""
    make_word_tokenizer(folder, words=["who", "is", "one", "two", "three", "note"])
    return load_tokenizer(folder)


class Rows:
    """A data set of `count` equal questions."""

    def __init__(self, count: int, token_ids: np.ndarray) -> None:
        self.count = count
        self._ids = token_ids

    def prompts(self, *, start: int = 0) -> Iterator[Prompt]:
        for row in range(start, self.count):
            yield Prompt(
                prompt_id=f"e0-r{row:03d}", epoch=0, row=row, token_ids=self._ids, question="who", ground_truth="two"
            )

    def position_of(self, prompt: Prompt) -> int:
        return prompt.row


class BusyGenerator(ScriptedGenerator):
    """Spends 10 ms in a forward pass for each token."""

    async def statistics(self) -> GeneratorStatistics:
        found = await super().statistics()
        return msgspec.structs.replace(found, busy_s=found.num_sampled_tokens / 100)


class World:
    """A whole control plane with scripted neighbours. `run` ends it; `cancel_at` kills it on the way."""

    def __init__(
        self,
        tokenizer: HfTokenizer,
        *,
        train: TrainConfig,
        rollout: RolloutConfig,
        num_prompts: int = 24,
        token_s: float = 0.01,
        latency_s: float = 0.3,
        step_s: float = 1.0,
        publish_s: float = 0.2,
        refuses: Callable[[str], bool] = lambda name: False,
        is_malformed: Callable[[str], bool] = lambda name: False,
        trainer: ScriptedTrainer | None = None,
        events: list[AnyEvent] | None = None,
        seed: int = 0,
        num_generators: int = 1,
        num_slots: int | None = None,
    ) -> None:
        """`num_slots` is how many requests each generator serves at once."""
        search = tokenizer.encode("<search> one </search>")
        answer = [*tokenizer.encode("<answer> two </answer>"), tokenizer.eos_token_ids[0]]
        words = np.array(tokenizer.encode("one two three note"), np.int32)
        self.train, self.rollout_config, self.seed = train, rollout, seed
        self.num_generators, self.num_slots = num_generators, num_slots
        self.script = random_script(calls=[search], answer=answer, words=words, num_words=12, token_s=token_s)
        reward = msgspec.json.encode(Reward(score=1.0)).decode()
        self.tools = ScriptedTools(
            {"search": "two", "reward": reward}, latency_s=lambda call: latency_s * (call.name != "reward")
        )
        self.renderer = make_renderer(RendererConfig(), tokenizer=tokenizer, specs=self.tools.specs)
        self.rows = Rows(num_prompts, np.array(tokenizer.encode("who is"), np.int32))
        self.vocab_size = tokenizer.vocab_size
        self.refuses = refuses
        self.is_malformed = is_malformed
        self.trainer = trainer or ScriptedTrainer(step_s=step_s, publish_s=publish_s)
        self.state = RunState()
        for event in events or ():
            self.state.apply(event)
        self.events: list[AnyEvent] = list(events or ())
        self.num_before = len(self.events)
        self.end_s = 0.0

    async def main(self) -> None:
        self.generators = [
            BusyGenerator(self.script, version=self.state.version, num_slots=self.num_slots)
            for _ in range(self.num_generators)
        ]
        controller = Controller(
            config=self.train,
            rollout_config=self.rollout_config,
            state=self.state,
            prompts=self.rows,
            rollout=self.grow,
            credit=self.credit,
            generators=self.generators,
            trainer=self.trainer,
            checkpoint_path=lambda step: f"checkpoint-{step}",
            emit=self.emit,
            evaluate=self.evaluate,
            credit_batch=self.credit_batch,
        )
        await controller.run()
        self.end_s = asyncio.get_running_loop().time()

    async def evaluate(self) -> dict[str, float]:
        await asyncio.sleep(0.5)
        return {"success": 0.5}

    def emit(self, event: AnyEvent) -> None:
        self.events.append(msgspec.structs.replace(event, t=asyncio.get_running_loop().time()))

    def grow(self, tree: TreeBuilder, cohort: Cohort) -> Awaitable[TrajectoryGroup]:
        return TreeRollout(
            tree,
            config=self.rollout_config,
            seed=self.seed,
            cohort=cohort,
            generator=self.generators[tree.prompt.row % self.num_generators],
            tools=self.tools,
            renderer=self.renderer,
            vocab_size=self.vocab_size,
            emit=self.emit,
        ).run()

    def credit(self, group: TrajectoryGroup) -> Sample | None:
        if self.refuses(group.prompt.prompt_id):
            return None
        if self.is_malformed(group.prompt.prompt_id):
            raise LearnerError(f"prompt {group.prompt.prompt_id}: a log-probability is not finite")
        sizes = [group.tree.token_ids(t.leaf).size for t in group.trajectories]
        return Sample(group=group, advantages=tuple(np.zeros(size, np.float32) for size in sizes))

    def credit_batch(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Marks every sample with its place among the others."""
        return [
            msgspec.structs.replace(sample, advantages=tuple(a + np.float32(place) for a in sample.advantages))
            for place, sample in enumerate(samples, 1)
        ]

    def run(self) -> "World":
        run_virtual(self.main())
        return self

    def kill_at(self, seconds: float) -> list[AnyEvent]:
        """The events a journal would hold after the process died at that time."""

        async def until() -> None:
            async with asyncio.timeout(seconds):
                await self.main()

        with pytest.raises(TimeoutError):
            run_virtual(until())
        return self.events

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def trained(self) -> list[str]:
        return [s.group.prompt.prompt_id for batch in self.trainer.batches for s in batch.samples]


def small(**changes: object) -> RolloutConfig:
    return msgspec.structs.replace(
        RolloutConfig(
            size=4,
            branching=Arpo(initial=2, probe_tokens=3),
            budget=BudgetConfig(calls_per_path=4),
            stream_interval=3,
        ),
        **changes,
    )


def revived(trainer: ScriptedTrainer) -> ScriptedTrainer:
    """A learner as a new process has it: what was saved, and nothing else."""
    fresh = ScriptedTrainer(step_s=0.4, publish_s=0.1)
    fresh.saved = trainer.saved
    return fresh
