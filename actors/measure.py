"""`arpo eval`: a policy on a file of questions, without a learner."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from actors.config import Config, EvalConfig
from actors.evaluate import Evaluation, evaluation_rollout, grow_all
from actors.materials import materialise
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from actors.watcher import Watcher
from engine.dataset import PromptDataset
from engine.inference.router import Router
from engine.types import TrajectoryGroup


async def measure(config: Config, settings: EvalConfig, *, run_dir: Path, watcher: Watcher) -> dict[str, float]:
    """Start the generators, ask every question, and return the metrics of `Evaluation`."""
    config = materialise(config)
    assert config.eval is not None
    async with LocalRuntime(config, run_dir) as runtime:
        questions = runtime.prompts(config.eval.data)
        router = await runtime.start_generators(await starting_model(config, runtime, emit=watcher.event))
        watcher.phase("evaluation", len(questions))
        return await ask(questions, settings, config=config, runtime=runtime, router=router, on_group=watcher.group)


async def ask(
    questions: PromptDataset,
    settings: EvalConfig,
    *,
    config: Config,
    runtime: LocalRuntime,
    router: Router,
    on_group: Callable[[TrajectoryGroup], None] = lambda group: None,
) -> dict[str, float]:
    """Ask every question of the policy behind `router`. What is sampled is measured, not trained: no journal has it."""
    rollout = evaluation_rollout(config.rollout, samples=settings.samples, temperature=settings.temperature)
    evaluation = Evaluation()

    def add(group: TrajectoryGroup) -> None:
        evaluation.add(group)
        on_group(group)

    # Names of their own: rows of the training data are in flight on the same generators.
    prompts = (msgspec.structs.replace(p, prompt_id=f"eval-{p.prompt_id}") for p in questions.prompts())
    await grow_all(
        prompts,
        runtime.rollouts(router, config=rollout, seed=config.run.seed, emit=lambda event: None),
        config=rollout,
        concurrency=settings.concurrency,
        on_group=add,
    )
    return evaluation.metrics(k=settings.samples)
