"""The control plane as a whole, under a virtual clock: overlap, staleness, order of publish and release, resume."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import codec, journal
from engine.branching import Arpo, Chain
from engine.clock import VirtualLoop, run_virtual
from engine.cohort import Cohort
from engine.coins import coin
from engine.controller import Controller
from engine.errors import ConfigError, DataError, GeneratorError, LearnerError, StalledError
from engine.events import (
    AnyEvent,
    BatchTaken,
    Checkpointed,
    Evaluated,
    Forked,
    GeneratorsMeasured,
    GroupRefused,
    PathStarted,
    PromptAdmitted,
    StepFinished,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    WeightsPublished,
)
from engine.faults import ScriptedTrainer
from engine.granting import Paper, Ranked
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
from engine.types import NodeKind, Prompt, Reward, Sample, TrajectoryGroup
from tools.faults import ScriptedTools


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    folder = tmp_path_factory.mktemp("words")
    make_word_tokenizer(folder, words=["who", "is", "one", "two", "three", "note"])
    return load_tokenizer(folder)


class Rows:
    """A data set of `count` equal questions."""

    def __init__(self, count: int, token_ids: np.ndarray) -> None:
        self._count = count
        self._ids = token_ids

    def prompts(self, *, start: int = 0) -> Iterator[Prompt]:
        for row in range(start, self._count):
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
    ) -> None:
        search = tokenizer.encode("<search> one </search>")
        answer = [*tokenizer.encode("<answer> two </answer>"), tokenizer.eos_token_ids[0]]
        words = np.array(tokenizer.encode("one two three note"), np.int32)
        self.train, self.rollout_config, self.seed = train, rollout, seed
        self.num_generators = num_generators
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
        self.generators = [BusyGenerator(self.script, version=self.state.version) for _ in range(self.num_generators)]
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


def test_every_prompt_is_trained_exactly_once(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=4, max_staleness=1), rollout=small()).run()
    assert sorted(world.trained) == [f"e0-r{row:03d}" for row in range(24)]
    assert [e.report.version for e in world.of(StepFinished)] == [1, 2, 3, 4, 5, 6]


def test_credit_sees_the_samples_of_a_step_together_and_in_their_order(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=4, max_staleness=1), rollout=small()).run()
    for batch, taken in zip(world.trainer.batches, world.of(BatchTaken), strict=True):
        assert tuple(s.group.prompt.prompt_id for s in batch.samples) == taken.prompt_ids
        assert [float(s.advantages[0][0]) for s in batch.samples] == [1, 2, 3, 4]


def test_staleness_never_exceeds_its_bound_and_uses_it(tokenizer: HfTokenizer) -> None:
    for bound in (0, 1, 2):
        world = World(tokenizer, train=TrainConfig(batch_size=3, max_staleness=bound), rollout=small()).run()
        lags = [b.step - 1 - s.group.oldest_version for b in world.trainer.batches for s in b.samples]
        assert max(lags) == bound


def test_slots_are_released_only_after_every_generator_has_the_weights(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=3, max_staleness=0), rollout=small(), publish_s=5.0).run()
    published = {e.version: e.t for e in world.of(WeightsPublished)}
    for admitted in world.of(PromptAdmitted):
        assert admitted.version == 0 or admitted.t >= published[admitted.version]
    versions = [v for b in world.trainer.batches for s in b.samples for n in s.group.tree.nodes for v in n.versions]
    assert versions, "scripted tokens are stamped"
    for batch in world.trainer.batches:
        for sample in batch.samples:
            assert sample.group.oldest_version == batch.step - 1, "on-policy: no group is born under older weights"


def test_all_generators_are_measured_together_behind_every_publication(tokenizer: HfTokenizer) -> None:
    train = TrainConfig(batch_size=4, max_staleness=1)
    world = World(tokenizer, train=train, rollout=small(), num_generators=2).run()
    measured = world.of(GeneratorsMeasured)
    kinds = [type(e) for e in world.events if isinstance(e, WeightsPublished | GeneratorsMeasured)]
    assert kinds == [WeightsPublished, GeneratorsMeasured] * 6
    counts = [event.num_sampled_tokens for event in measured]
    assert counts == sorted(counts)
    by_generator = Counter({0: 0, 1: 0})
    for event in world.of(TokensSampled):
        by_generator[int(event.prompt_id[-3:]) % 2] += event.token_ids.size
    assert min(by_generator.values()) > 0
    assert counts[-1] == sum(by_generator.values())
    assert [event.busy_s for event in measured] == pytest.approx([count / 100 for count in counts])


def test_generation_and_training_overlap(tokenizer: HfTokenizer) -> None:
    def seconds(staleness: int) -> float:
        train = TrainConfig(batch_size=4, max_staleness=staleness)
        return World(tokenizer, train=train, rollout=small(), step_s=1.5).run().end_s

    assert seconds(1) < 0.75 * seconds(0)


def test_steps_limit_what_is_generated(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(steps=2, batch_size=3, max_staleness=2), rollout=small()).run()
    assert len(world.of(PromptAdmitted)) == 6
    assert len(world.trainer.batches) == 2


def test_refused_groups_are_replaced_and_free_their_slots(tokenizer: HfTokenizer) -> None:
    world = World(
        tokenizer,
        train=TrainConfig(steps=3, batch_size=3, max_staleness=1),
        rollout=small(),
        refuses=lambda name: int(name[-3:]) % 2 == 0,
    ).run()
    assert len(world.trained) == 9
    assert all(int(name[-3:]) % 2 for name in world.trained)


def test_a_group_that_cannot_be_trained_is_refused_with_the_reason_and_harms_no_other(
    tokenizer: HfTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(
        tokenizer,
        train=TrainConfig(steps=3, batch_size=3, max_staleness=1),
        rollout=small(),
        is_malformed=lambda name: name.endswith("4"),
    ).run()
    assert len(world.trained) == 9
    reasons = [event.reason for event in world.of(GroupRefused)]
    assert reasons
    assert all("a log-probability is not finite" in reason for reason in reasons)
    assert "a group is refused: prompt e0-r" in caplog.text


def test_a_run_whose_groups_are_all_refused_ends(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=3), rollout=small(), refuses=lambda name: True).run()
    assert world.trained == []
    assert len(world.of(GroupRefused)) == 24


def test_a_failing_learner_ends_the_run(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=3), rollout=small(), trainer=ScriptedTrainer(fails_at=2))
    with pytest.raises(ExceptionGroup) as caught:
        world.run()
    assert caught.group_contains(LearnerError, match="step 2")


def test_a_stalled_learner_is_named_not_waited_for(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=3), rollout=small(), trainer=ScriptedTrainer(stalls_at=2))
    with pytest.raises(ExceptionGroup) as caught:
        world.run()
    assert caught.group_contains(StalledError, match="the learner's step 2 took more than 7200 s")


@pytest.mark.parametrize("granting", [Paper(), Ranked(window=3)], ids=["paper", "ranked"])
def test_deterministic_runs_make_the_same_decisions_whatever_the_timing(
    tokenizer: HfTokenizer, granting: Paper | Ranked
) -> None:
    def decisions(**timing: float) -> list[object]:
        world = World(
            tokenizer,
            train=TrainConfig(batch_size=4, max_staleness=1, deterministic=True),
            rollout=small(granting=granting),
            refuses=lambda name: int(name[-3:]) % 5 == 0,
            **timing,
        ).run()
        forks = sorted((e.prompt_id, e.path, e.child, e.length) for e in world.of(Forked))
        batches = [
            [(s.group.prompt.prompt_id, s.group.oldest_version, s.group.num_forks) for s in b.samples]
            for b in world.trainer.batches
        ]
        tokens = [
            node.token_ids.tobytes() + node.versions.tobytes()
            for b in world.trainer.batches
            for s in b.samples
            for node in s.group.tree.nodes
        ]
        return [forks, batches, tokens]

    usual = decisions()
    assert usual == decisions(token_s=0.3, step_s=0.01) == decisions(latency_s=9.0, publish_s=4.0)
    assert usual[0]


def test_deterministic_refuses_budgets_that_depend_on_timing(tokenizer: HfTokenizer) -> None:
    world = World(
        tokenizer,
        train=TrainConfig(batch_size=2, deterministic=True),
        rollout=small(budget=BudgetConfig(calls_per_run=9)),
    )
    with pytest.raises(ConfigError, match=r"rollout\.budget\.calls_per_run"):
        world.run()


def test_budget_of_the_run_is_hard(tokenizer: HfTokenizer) -> None:
    world = World(
        tokenizer, train=TrainConfig(batch_size=4), rollout=small(budget=BudgetConfig(calls_per_run=30))
    ).run()
    assert sum(e.result.was_executed for e in world.of(ToolFinished)) == 30


@settings(max_examples=25)
@given(when=st.floats(0.2, 12.0), again=st.floats(0.2, 6.0), deterministic=st.booleans())
def test_a_killed_run_goes_on_without_losing_or_repeating_anything(
    tokenizer: HfTokenizer, when: float, again: float, deterministic: bool
) -> None:
    """Die at any time, twice: each prompt trained once in the learner's final history, no journaled call repeated."""
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2, deterministic=deterministic)
    trainer = ScriptedTrainer(step_s=0.4, publish_s=0.1)
    events: list[AnyEvent] = []
    for seconds in (when, again):
        world = World(tokenizer, train=train, rollout=small(branching=Chain()), trainer=trainer, events=events)
        try:
            events = world.kill_at(seconds)
        except pytest.fail.Exception:
            break  # the run ended before it could be killed
        trainer = revived(trainer)
    world = World(tokenizer, train=train, rollout=small(branching=Chain()), trainer=trainer, events=events)
    if not world.state.is_finished:
        world.run()
    taken = [name for event in world.of(BatchTaken) for name in event.prompt_ids]
    assert sorted(taken) == [f"e0-r{row:03d}" for row in range(24)]
    steps = [event.report.step for event in world.of(StepFinished)]
    assert sorted(set(steps)) == list(range(1, 7))
    asked = [(e.prompt_id, e.path, e.index) for e in world.of(ToolRequested)]
    assert len(asked) == len(set(asked))
    answered = [(e.prompt_id, e.path, e.index) for e in world.of(ToolFinished)]
    assert len(answered) == len(set(answered))


@settings(max_examples=25)
@given(when=st.floats(0.2, 12.0), deterministic=st.booleans(), is_ranked=st.booleans())
def test_what_is_due_behind_a_step_and_every_budget_survive_a_kill(
    tokenizer: HfTokenizer, when: float, deterministic: bool, is_ranked: bool
) -> None:
    """Checkpoints and evaluations come once each, forks go on, and nothing is spent twice because nobody remembered."""
    shared = is_ranked or not deterministic
    budget = BudgetConfig(
        calls_per_path=4,
        leaves_per_cohort=14 if shared else None,
        calls_per_run=None if deterministic else 150,
    )
    rollout = small(branching=Arpo(initial=2, probe_tokens=3), budget=budget)
    if is_ranked:
        rollout = msgspec.structs.replace(rollout, granting=Ranked(window=2))
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2, eval_every=3, deterministic=deterministic)
    trainer = ScriptedTrainer(step_s=0.4, publish_s=0.1)
    world = World(tokenizer, train=train, rollout=rollout, trainer=trainer)
    try:
        events = world.kill_at(when)
    except pytest.fail.Exception:
        pass  # the run ended before it could be killed
    else:
        world = World(tokenizer, train=train, rollout=rollout, trainer=revived(trainer), events=events)
        world.run()
    assert [event.step for event in world.of(Checkpointed)] == [2, 4, 6]
    assert [event.step for event in world.of(Evaluated)] == [3, 6]
    executed = sum(event.result.was_executed for event in world.of(ToolFinished))
    assert budget.calls_per_run is None or executed <= budget.calls_per_run
    cohorts = {event.prompt_id: event.cohort for event in world.of(PromptAdmitted)}
    leaves = Counter(cohorts[e.prompt_id] for e in world.events if isinstance(e, PathStarted | Forked))
    assert max(leaves.values()) <= (14 if shared else 16)
    assert sum(leaves.values()) >= 6 * 12


@pytest.mark.parametrize("when", [0.3, 0.9, 1.3, 2.0, 2.9, 3.4, 5.0])
def test_a_killed_deterministic_run_is_the_same_run(tokenizer: HfTokenizer, when: float) -> None:
    """The same tokens under the same versions, in the same batches, as if nothing had happened."""
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2, deterministic=True)

    def world(**more: object) -> World:
        refuses = lambda name: int(name[-3:]) % 5 == 3  # noqa: E731 - one rule for three worlds
        # Segments that take no time are never cut: what the fake says in the middle of one depends on where it begins.
        return World(tokenizer, train=train, rollout=small(), refuses=refuses, token_s=0.0, step_s=0.4, **more)

    def history(run: World) -> tuple[object, ...]:
        tokens: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for e in run.of(TokensSampled):
            pairs = zip(e.token_ids.tolist(), e.versions.tolist(), strict=True)
            tokens.setdefault((e.prompt_id, e.path), []).extend(pairs)
        return tokens, [e.prompt_ids for e in run.of(BatchTaken)], len(run.of(PromptAdmitted))

    whole = world().run()
    first = world()
    again = world(trainer=revived(first.trainer), events=first.kill_at(when)).run()
    assert history(again) == history(whole)


@settings(max_examples=30)
@given(when=st.floats(0.5, 10.0))
def test_staleness_is_bounded_across_a_kill(tokenizer: HfTokenizer, when: float) -> None:
    train = TrainConfig(batch_size=3, max_staleness=1, checkpoint_every=1)
    world = World(tokenizer, train=train, rollout=small())
    try:
        events = world.kill_at(when)
    except pytest.fail.Exception:
        return  # the run ended before it could be killed
    again = World(tokenizer, train=train, rollout=small(), trainer=revived(world.trainer), events=events).run()
    lags = [b.step - 1 - s.group.oldest_version for b in again.trainer.batches for s in b.samples]
    assert max(lags, default=0) <= 1


def test_a_dead_generator_ends_the_run_instead_of_burning_the_prompts(tokenizer: HfTokenizer) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=3), rollout=small())
    script = world.script
    world.script = lambda request: msgspec.structs.replace(
        script(request), fails_after=0 if asyncio.get_running_loop().time() > 3.0 else None
    )
    with pytest.raises(ExceptionGroup) as caught:
        world.run()
    assert caught.group_contains(GeneratorError, match="every path of 3 groups in a row failed: scripted failure")
    assert len(world.of(GroupRefused)) < 3


def test_the_end_of_the_data_is_a_last_step_with_all_that_is_due(tokenizer: HfTokenizer) -> None:
    train = TrainConfig(batch_size=4, checkpoint_every=100, eval_every=100)
    world = World(tokenizer, train=train, rollout=small(), num_prompts=8).run()
    assert [event.step for event in world.of(Checkpointed)] == [2]
    assert [event.step for event in world.of(Evaluated)] == [2]


@pytest.mark.parametrize("num_torn", [1, 2])
@pytest.mark.parametrize("num_saved", [1, 2, 3])
def test_a_torn_checkpoint_is_made_up_for_by_the_one_before_it(
    tokenizer: HfTokenizer, num_saved: int, num_torn: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The learner is given what the journal knows to lie between, and the torn one is written again."""
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2)
    first = World(tokenizer, train=train, rollout=small(), trainer=ScriptedTrainer(step_s=0.4, publish_s=0.1))
    events = first.run().events
    ends = [i for i, event in enumerate(events) if isinstance(event, Checkpointed)]
    events = events[: ends[num_saved - 1] + 1]
    saved = [2 * number for number in range(1, num_saved + 1)]
    trainer = revived(first.trainer)
    trainer.torn = {f"checkpoint-{step}" for step in saved[-num_torn:]}
    again = World(tokenizer, train=train, rollout=small(), trainer=trainer, events=events)
    if num_torn == 2 <= num_saved:
        with pytest.raises(DataError, match=f"checkpoint-{saved[-2]}"):
            again.run()
        return
    again.run()
    whole = saved[-2] if num_saved > 1 else 0
    assert [batch.step for batch in trainer.batches] == list(range(whole + 1, 7))
    assert trainer.version == 6
    assert trainer.saved[f"checkpoint-{saved[-1]}"] == saved[-1], "with the version it had"
    assert [event.step for event in again.of(Checkpointed)[num_saved:]] == list(range(saved[-1], 7, 2))
    assert f"checkpoint-{saved[-1]}" in caplog.text


def revived(trainer: ScriptedTrainer) -> ScriptedTrainer:
    """A learner as a new process has it: what was saved, and nothing else."""
    fresh = ScriptedTrainer(step_s=0.4, publish_s=0.1)
    fresh.saved = trainer.saved
    return fresh


def test_events_survive_the_journal_and_fold_to_the_same_state(tokenizer: HfTokenizer, tmp_path: Path) -> None:
    world = World(tokenizer, train=TrainConfig(batch_size=4), rollout=small())
    events = world.kill_at(4.0)
    with journal.Journal(tmp_path) as file:
        for event in events:
            file.append(event)
    again = RunState()
    for event in journal.read(tmp_path):
        again.apply(event)
    once = RunState()
    for event in events:
        once.apply(event)
    assert (again.step, again.version, list(again.trees), list(again.groups)) == (
        once.step,
        once.version,
        list(once.trees),
        list(once.groups),
    )
    assert once.trees
    for name, tree in once.trees.items():
        assert codec.encode(tree.group()) == codec.encode(again.trees[name].group())


def test_sampled_tokens_keep_the_version_that_sampled_them(tokenizer: HfTokenizer) -> None:
    """In-flight groups see several versions; a branch inherits those of its prefix."""
    world = World(
        tokenizer, train=TrainConfig(batch_size=2, max_staleness=3), rollout=small(), token_s=0.2, step_s=0.1
    ).run()
    groups = [s.group for b in world.trainer.batches for s in b.samples]
    mixed = [g for g in groups if len({int(v) for n in g.tree.nodes for v in n.versions}) > 1]
    assert mixed
    for group in groups:
        for trajectory in group.trajectories:
            path = [group.tree.nodes[i] for i in group.tree.path_to(trajectory.leaf)]
            versions = np.concatenate([n.versions for n in path if n.kind is NodeKind.SAMPLED])
            assert (np.diff(versions) >= 0).all()


def test_the_run_uses_the_loops_clock_only(tokenizer: HfTokenizer) -> None:
    loop = VirtualLoop()
    world = World(tokenizer, train=TrainConfig(steps=1, batch_size=2), rollout=small())
    loop.run_until_complete(world.main())
    assert loop.time() == world.end_s > coin(0, "any") * 0
    loop.close()
