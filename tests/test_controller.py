"""The control plane as a whole, under a virtual clock: overlap, staleness, order of publish and release, resume."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import codec, journal
from engine.branching import Arpo, Chain
from engine.clock import VirtualLoop
from engine.coins import coin
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
from engine.rollout_config import BudgetConfig, Order
from engine.run_state import RunState
from engine.tokenizer import HfTokenizer
from engine.train_config import TrainConfig
from engine.types import NodeKind
from tests.control_world import World, revived, small, words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return words(tmp_path_factory.mktemp("words"))


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
    def decisions(order: Order = "longest_expected", **timing: Any) -> list[object]:
        world = World(
            tokenizer,
            train=TrainConfig(batch_size=4, max_staleness=1, deterministic=True),
            rollout=small(granting=granting, order=order),
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
    assert usual == decisions(num_slots=2) == decisions("first_come", num_slots=2)
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


@pytest.mark.parametrize("granting", [Paper(), Ranked(window=3)], ids=["paper", "ranked"])
@pytest.mark.parametrize("when", [0.35, 0.95, 1.35, 2.05, 2.95, 3.45, 5.05])
def test_a_killed_deterministic_run_is_the_same_run(
    tokenizer: HfTokenizer, when: float, granting: Paper | Ranked
) -> None:
    """The same tokens under the same versions, in the same batches, as if nothing had happened."""
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2, deterministic=True)

    def world(**more: object) -> World:
        refuses = lambda name: int(name[-3:]) % 5 == 3  # noqa: E731 - one rule for three worlds
        # Segments that take no time are never cut, unless a tool comes back in the very moment of the kill: what the
        # fake says in the middle of one depends on where it begins.
        rollout = small(granting=granting)
        return World(tokenizer, train=train, rollout=rollout, refuses=refuses, token_s=0.0, step_s=0.4, **more)

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


def test_a_resume_whose_steps_are_not_at_hand_says_so(tokenizer: HfTokenizer) -> None:
    """The journal was dropped behind a checkpoint that is torn now: the run would begin with its first model again."""
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2)
    first = World(tokenizer, train=train, rollout=small())
    events = first.run().events
    ends = [i for i, event in enumerate(events) if isinstance(event, Checkpointed)]
    trainer = revived(first.trainer)
    trainer.torn = {"checkpoint-2"}
    again = World(tokenizer, train=train, rollout=small(), trainer=trainer, events=events[: ends[0] + 1])
    del again.state.batches[1]
    with pytest.raises(DataError, match=r"whole is that of step 0, and what was trained from step 1 on is no longer"):
        again.run()
    assert not trainer.batches


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
