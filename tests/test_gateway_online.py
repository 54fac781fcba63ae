"""Traffic into weights: what is credited, what is too old, and that a real policy learns what its clients reward."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.config import Config, HfModel
from actors.gateway.config import ServeConfig
from actors.gateway.online import HELD_BATCHES, OnlineTraining
from actors.run_dir import RunDir
from actors.serve import serve
from engine.clock import run_virtual
from engine.dataset import DataConfig
from engine.errors import ConfigError
from engine.events import AnyEvent, BatchTaken, Checkpointed, WeightsPublished
from engine.faults import ScriptedTrainer
from engine.inference.scripted import Script, ScriptedGenerator
from engine.run_state import RunState
from engine.train_config import TrainConfig
from engine.types import (
    Node,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    Sample,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)

NONE = np.empty(0, np.float32)


def group(number: int, *, version: int = 0, score: float = 1.0) -> TrajectoryGroup:
    """A conversation of one turn of two tokens."""
    ids = np.array([1, 2], np.int32)
    root = Node(parent=-1, kind=NodeKind.PROMPT, token_ids=ids, logprobs=NONE, versions=ids[:0], entropies=NONE)
    turn = Node(
        parent=0,
        kind=NodeKind.SAMPLED,
        token_ids=ids,
        logprobs=np.full(2, -1, np.float32),
        versions=np.full(2, version, np.int32),
        entropies=np.zeros(2, np.float32),
    )
    prompt = Prompt(prompt_id=f"a/{number}", epoch=0, row=number, token_ids=ids, question="", ground_truth="")
    ended = Trajectory(path=0, leaf=1, status=RolloutStatus.COMPLETED, reward=Reward(score=score))
    return TrajectoryGroup(prompt=prompt, tree=TrajectoryTree(nodes=(root, turn)), trajectories=(ended,))


class Made:
    """Online training with fakes on both sides."""

    def __init__(self, state: RunState | None = None, **config: Any) -> None:
        self.events: list[AnyEvent] = []
        self.trainer = ScriptedTrainer(step_s=1.0)
        self.generator = ScriptedGenerator(lambda request: Script(token_ids=[1]))
        self.training = OnlineTraining(
            config=TrainConfig(**config),
            batch_size=2,
            state=state or RunState(),
            credit=lambda one: Sample(group=one, advantages=(NONE,)) if one.trajectories[0].reward.score else None,
            credit_batch=tuple,
            trainer=self.trainer,
            generators=[self.generator],
            checkpoint_path=lambda step: f"step-{step}",
            emit=self.events.append,
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.training.run(), name="online training")
            yield
            task.cancel()

    @property
    def taken(self) -> list[tuple[str, ...]]:
        return [event.prompt_ids for event in self.events if isinstance(event, BatchTaken)]


def test_batches_are_taken_in_order_and_every_generator_gets_their_weights() -> None:
    async def main() -> None:
        made = Made(checkpoint_every=2)
        async with made.running():
            for number in range(5):
                made.training.offer(group(number))
            await asyncio.sleep(10)
            assert made.taken == [("a/0", "a/1"), ("a/2", "a/3")]
            assert (made.training.version, (await made.generator.statistics()).version) == (2, 2)
            assert [type(event) for event in made.events[-2:]] == [WeightsPublished, Checkpointed]

    run_virtual(main())


def test_what_has_no_signal_or_grew_too_old_is_dropped_and_counted() -> None:
    async def main() -> None:
        made = Made(max_staleness=0)
        async with made.running():
            made.training.offer(group(0, score=0.0))
            for number in range(1, 4):
                made.training.offer(group(number))
            await asyncio.sleep(10)
            made.training.offer(group(4, version=1))
            made.training.offer(group(5, version=1))
            await asyncio.sleep(10)
            assert made.taken == [("a/1", "a/2"), ("a/4", "a/5")]
            assert (made.training.num_refused, made.training.num_stale) == (1, 1)

    run_virtual(main())


def test_what_is_deleted_while_it_waits_for_its_batch_is_not_trained() -> None:
    async def main() -> None:
        made = Made()
        for number in range(2):
            made.training.offer(group(number))
        made.training.drop("a/0")
        made.training.offer(group(2))
        async with made.running():
            await asyncio.sleep(10.0)
        assert made.taken == [("a/1", "a/2")]

    run_virtual(main())


def test_traffic_is_never_held_back_and_the_oldest_goes_first() -> None:
    made = Made()
    for number in range(2 * HELD_BATCHES + 3):
        made.training.offer(group(number))
    assert made.training._waiting[0].group.prompt.prompt_id == "a/3"


def test_a_process_goes_on_from_the_checkpoint_of_the_one_before() -> None:
    async def main() -> None:
        state = RunState(checkpoints=(Checkpointed(step=4, version=4, path="step-4"),))
        made = Made(state, steps=5)
        made.trainer.saved["step-4"] = 4
        made.training.offer(group(0, version=4))
        made.training.offer(group(1, version=4))
        await made.training.run()
        assert (made.training.num_steps, made.training.version, made.trainer.version) == (5, 5, 5)

    run_virtual(main())


def test_a_process_whose_last_checkpoint_is_torn_makes_it_again() -> None:
    async def main() -> None:
        known = tuple(Checkpointed(step=step, version=step, path=f"checkpoint-{step}") for step in (1, 2))
        made = Made(RunState(checkpoints=known), checkpoint_every=1)
        made.trainer.saved.update({"checkpoint-1": 1, "checkpoint-2": 2})
        made.trainer.torn = {"checkpoint-2"}
        async with made.running():
            made.training.offer(group(0))
            made.training.offer(group(1))
            await asyncio.sleep(10)
        assert [event.step for event in made.events if isinstance(event, Checkpointed)] == [2]

    run_virtual(main())


def test_what_nobody_trains_does_not_make_a_tree_old() -> None:
    """A conversation that ended without a reward shares the tree of those that have one."""
    fresh = group(0, version=8)
    node = msgspec.structs.replace(fresh.tree.nodes[1], versions=np.full(2, 3, np.int32))
    failed = Trajectory(path=1, leaf=2, status=RolloutStatus.FAILED, reward=Reward(score=0.0))
    tree = TrajectoryTree(nodes=(*fresh.tree.nodes, node))
    both = msgspec.structs.replace(fresh, tree=tree, trajectories=(*fresh.trajectories, failed))
    assert both.oldest_version == 8


@pytest.mark.parametrize(
    ("serve_section", "message"),
    [({"train": True}, "reward keys"), ({"train": True, "keys_file": "keys.toml"}, r"serve\.group_size")],
)
def test_training_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, serve_section: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.toml").write_text('[a]\nkey = "secret-one-1"\nreward_key = "secret-two-2"\n')
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    config = Config(
        model=HfModel(path="model"), data=DataConfig(path="none.parquet"), serve=ServeConfig(**serve_section)
    )
    with pytest.raises(ConfigError, match=message):
        asyncio.run(serve(config, RunDir(tmp_path / "run"), say=lambda line: None))
    assert not (tmp_path / "run").exists()
