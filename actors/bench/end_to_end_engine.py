"""The engine's side of `arpo bench end-to-end`: a run as `arpo train` makes it, with a reward of its own."""

import asyncio
from itertools import islice
from pathlib import Path

from actors.bench.end_to_end_task import Task, Told, reward_of
from actors.config import Config, HfModel
from actors.materials import materialise
from actors.run_dir import RunDir
from actors.run_log import RunLog
from actors.runtime import LocalRuntime
from actors.train import Inputs, Training
from actors.watcher import Watcher
from engine import config as configuration
from engine import journal
from engine.dataset import PromptDataset
from engine.events import AnyEvent, PathEnded, TokensSampled, WeightsPublished
from engine.renderer import make_renderer
from engine.tokenizer import load_tokenizer
from engine.types import Reward
from learner.config import Ppo
from tools.schema import tool

CONFIG = Path(__file__).with_name("end_to_end.toml")


@tool(visible=False, inline=True)
def reward(text: str, ground_truth: str, tools_run: tuple[str, ...] = ()) -> Reward:
    """Score a completion as the other side does."""
    del ground_truth, tools_run
    return Reward(score=reward_of(text))


def configured(folder: Path, *, seed: int, steps: int) -> Config:
    """The run of a seed, with its model and its questions made, in the folder."""
    overrides = [f"run.dir={folder}", f"run.seed={seed}", f"data.shuffle_seed={seed}", f"train.steps={steps}"]
    return materialise(configuration.load(CONFIG, Config, overrides=overrides))


def task_of(config: Config, *, threads: int) -> Task:
    """The same run, in words that do not know the engine; `config` is as `configured` makes it."""
    assert isinstance(config.model, HfModel)
    assert isinstance(config.learner.loss, Ppo)
    assert config.train.steps is not None
    tokenizer = load_tokenizer(config.model.path)
    dataset = PromptDataset(config.data, renderer=make_renderer(config.renderer, tokenizer=tokenizer, specs=()))
    asked = islice(dataset.prompts(), config.train.steps * config.train.batch_size)
    return Task(
        model_path=config.model.path,
        prompts=tuple(list(dataset.row(prompt).messages) for prompt in asked),
        num_prompts=config.train.batch_size,
        num_completions=config.rollout.size,
        max_tokens=config.rollout.sampling.max_response_tokens,
        temperature=config.rollout.sampling.temperature,
        lr=config.learner.lr,
        grad_clip=config.learner.grad_clip,
        clip=config.learner.loss.eps_low,
        steps=config.train.steps,
        threads=threads,
    )


def run(config: Config, folder: Path) -> Told:
    """Train to the end in the folder of a run; a generator and a learner in processes of their own, a thread each."""
    asyncio.run(_train(config, RunDir(folder)))
    return told(list(journal.read(RunDir(folder).journal)))


async def _train(config: Config, run: RunDir) -> None:
    watcher = Watcher()
    async with LocalRuntime(config, run.path, reward=reward) as runtime:
        inputs = Inputs(runtime)
        with run.locked(), RunLog(config, run, watcher=watcher) as log:
            await Training(config, run, log, watcher=watcher).run(runtime, inputs)


def told(events: list[AnyEvent]) -> Told:
    """What the events of a run say."""
    num_tokens = sum(event.token_ids.size for event in events if isinstance(event, TokensSampled))
    return Told(
        ends_s=tuple(event.t for event in events if isinstance(event, WeightsPublished)),
        tokens=num_tokens / sum(isinstance(event, PathEnded) for event in events),
    )
