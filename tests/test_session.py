"""The engine as a library: real generators and learners, several sessions at once, and nothing left of any of them."""

import asyncio
import contextlib
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from actors import Config, Policy, Session
from actors.config import RuntimeConfig
from engine import Prompt, Reward
from engine.errors import ConfigError
from engine.types import RolloutStatus
from tests.session_world import QUESTIONS, small_config
from tools import tool

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


@tool(visible=False)
def reward(text: str, ground_truth: str, tools_run: tuple[str, ...] = ()) -> Reward:
    """The longer an answer is, the better: there is always something to learn."""
    return Reward(score=float(len(text) % 7), is_correct=ground_truth in text)


async def speaker(policy: Policy, prompt: Prompt) -> float:
    """Two turns, with a result of its own between them."""
    turn = await policy.sample(max_tokens=4)
    if turn.calls:
        policy.answer(*["two" for _ in turn.calls])
    elif not turn.is_cut:
        policy.say("who is it")
    last = await policy.sample(max_tokens=4)
    return float(last.token_ids.sum() % 5)


def running() -> set[str]:
    """Processes below this one, and tasks of this loop."""
    children = {f"process {child.pid} {child.name()}" for child in psutil.Process().children(recursive=True)}
    return children | {f"task {id(task)} {task.get_name()}" for task in asyncio.all_tasks()}


async def collected() -> None:
    """A stream that nobody closed is closed by the garbage collector, in a task that ends at once."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=1.0)


def is_empty(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def world(folder: Path, *, steps: int = 2) -> tuple[Config, Path]:
    """A configuration, and the folder into which its learners publish weights, which is otherwise shared memory."""
    weights = folder / "weights"
    weights.mkdir()
    config = small_config(folder / "world", steps=steps)
    return msgspec.structs.replace(config, runtime=RuntimeConfig(weights_dir=str(weights))), weights


def test_a_session_generates_grows_trees_and_trains(tmp_path: Path) -> None:
    config, weights = world(tmp_path)

    async def main() -> Path:
        before = running()
        async with Session(config, reward=reward) as session:
            said = await session.generate("who is it", max_tokens=5)
            assert 0 < said.token_ids.size <= 5
            assert set(said.versions.tolist()) == {0}
            assert np.isfinite(said.logprobs).all()
            greedy = [(await session.generate("who is it", temperature=0.0)).text for _ in range(2)]
            assert greedy[0] == greedy[1]
            with pytest.raises(RuntimeError, match="nothing has been trained"):
                await session.export_hf(tmp_path / "hf")

            prompts = session.prompts(QUESTIONS[:3], ground_truths=["two"] * 3)
            names = [group.prompt.prompt_id async for group in session.rollouts(prompts)]
            assert sorted(names) == [prompt.prompt_id for prompt in prompts]

            rows = [row async for row in session.steps()]
            assert [row.step for row in rows] == [1, 2]
            assert all(row.num_trained_tokens > 0 for row in rows)
            assert set((await session.generate("who is it")).versions.tolist()) == {2}
            await session.export_hf(tmp_path / "hf")
            assert (tmp_path / "hf" / "model.safetensors").exists()
            assert [row async for row in session.steps()] == [], "all steps are done"
        assert running() == before
        return session.folder

    assert not asyncio.run(main()).exists()
    assert is_empty(weights)


def test_two_sessions_live_in_one_process_and_an_agent_is_trained_in_one(tmp_path: Path) -> None:
    async def main() -> None:
        here, there = small_config(tmp_path / "here", steps=2), small_config(tmp_path / "there")

        async def train(session: Session) -> list[int]:
            return [row.step async for row in session.steps()]

        async def roll(session: Session) -> set[int]:
            versions: set[int] = set()
            async for group in session.rollouts(session.prompts(QUESTIONS * 4)):
                versions |= {int(v) for node in group.tree.nodes for v in node.versions}
            return versions

        async with Session(here, agent=speaker) as one, Session(there, reward=reward) as other:
            async with asyncio.TaskGroup() as tasks:
                steps = tasks.create_task(train(one))
                versions = tasks.create_task(roll(other))
            assert steps.result() == [1, 2]
            assert versions.result() == {0}, "what one session trains reaches no other"
            assert set((await one.generate("who is it")).versions.tolist()) == {2}
            (group,) = [group async for group in one.rollouts(one.prompts(["who is it"]))]
            assert {t.status for t in group.trajectories} == {RolloutStatus.COMPLETED}

    asyncio.run(main())


def test_steps_that_were_broken_off_go_on_where_they_were(tmp_path: Path) -> None:
    async def main() -> list[int]:
        config = small_config(tmp_path / "world", steps=3)
        seen: list[int] = []
        async with Session(config, reward=reward, folder=tmp_path / "run") as session:
            async with contextlib.aclosing(session.steps()) as rows:
                async for row in rows:
                    seen.append(row.step)
                    break
            first = seen[-1]
            seen += [row.step async for row in session.steps() if row.step > first]
        return seen

    seen = asyncio.run(main())
    assert seen[0] == 1
    assert seen == sorted(set(seen))
    assert seen[-1] == 3
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n") == 3
    changed = small_config(tmp_path / "other", steps=4)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="another configuration"):
        asyncio.run(_enter(changed, tmp_path / "run"))


async def _enter(config: Config, folder: Path) -> None:
    async with Session(config, folder=folder):
        pass


@pytest.mark.parametrize("stream", ["steps", "rollouts", "generate", "left open"])
def test_cancelling_a_consumer_leaves_nothing(tmp_path: Path, stream: str) -> None:
    config, weights = world(tmp_path, steps=500)

    async def consume(began: asyncio.Event, folders: list[Path]) -> None:
        async with Session(config, reward=reward) as session:
            folders.append(session.folder)
            if stream == "steps":
                async for _ in session.steps():
                    began.set()
            elif stream == "rollouts":
                async for _ in session.rollouts(session.prompts(QUESTIONS * 500)):
                    began.set()
            elif stream == "generate":
                while True:
                    await session.generate("who is it")
                    began.set()
            else:  # nobody closes it, and nobody reads on
                groups = session.rollouts(session.prompts(QUESTIONS * 500))
                await anext(groups)
                began.set()
                await asyncio.Event().wait()

    async def main() -> Path:
        before, began, folders = running(), asyncio.Event(), list[Path]()
        consumer = asyncio.create_task(consume(began, folders))
        waiting = asyncio.create_task(began.wait())
        await asyncio.wait([waiting, consumer], return_when=asyncio.FIRST_COMPLETED)
        assert len(running()) > len(before) + 2, "something was there to be left"
        waiting.cancel()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        await asyncio.gather(waiting, return_exceptions=True)
        await collected()
        assert running() == before
        return folders[0]

    assert not asyncio.run(main()).exists()
    assert is_empty(weights)


def test_whoever_still_reads_when_a_session_ends_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with Session(small_config(tmp_path / "world"), reward=reward) as session:
            groups = session.rollouts(session.prompts(QUESTIONS * 500))
            await anext(groups)

            async def read_on() -> None:
                async for _ in groups:
                    pass

            reading = asyncio.create_task(read_on())
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="the session has ended"):
            await reading

    asyncio.run(main())
