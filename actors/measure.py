"""`arpo eval`: a policy on files of questions, without a learner; its answers stay on disk, question by question."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.config import Config, EvalConfig, HfModel
from actors.evaluate import Evaluation, evaluation_rollout, grow_all
from actors.materials import WORLD, materialise
from actors.predictions import Prediction, PredictionFile, predictions_of
from actors.run_dir import RunDir
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from actors.watcher import Watcher
from engine.dataset import PromptDataset
from engine.errors import ConfigError
from engine.inference.router import Router
from engine.types import Prompt, TrajectoryGroup

NAMELESS = frozenset({"data", "test", "top", "train", "valid", "validation"})
"""A file of such a name is called by its folder: `aime24/test.jsonl` is aime24."""


class QuestionSet:
    """The questions of one file, and what was answered to them so far."""

    def __init__(self, name: str, dataset: PromptDataset, folder: Path, *, samples: int) -> None:
        content = hashlib.blake2b(Path(dataset.config.path).read_bytes(), digest_size=4).hexdigest()
        self.name = name
        self.dataset = dataset
        self.file = PredictionFile(folder / f"{name}-{content}.jsonl", samples=samples)
        done = self.file.done
        self._prompts = list(dataset.prompts())
        self.open_prompts = [prompt for prompt in self._prompts if prompt.row not in done]

    @property
    def predictions(self) -> list[Prediction]:
        """Of the questions that the data set has now; others of the file may have been answered, too."""
        return self.file.of([prompt.row for prompt in self._prompts])


async def measure(
    config: Config, settings: EvalConfig, *, data: Sequence[str], folder: Path, watcher: Watcher
) -> list[Prediction]:
    """Ask every question of the files `data` that has not been answered in `folder`, and return all answers.

    Generators start only where there is something to ask. Bad input is refused before the folder is made.
    """
    names = set_names(data)
    configs = [_about(config, settings, path) for path in data]
    async with LocalRuntime(configs[0], folder) as runtime:
        datasets = [runtime.prompts(one.eval.data) for one in configs if one.eval is not None]
        with RunDir(folder).locked():
            sets = [
                QuestionSet(name, dataset, folder, samples=settings.samples)
                for name, dataset in zip(names, datasets, strict=True)
            ]
            if any(one.open_prompts for one in sets):
                model = await starting_model(configs[0], runtime, emit=watcher.event)
                router = await runtime.start_generators(model)
                for one in sets:
                    await _answer(one, settings, config=configs[0], runtime=runtime, router=router, watcher=watcher)
            return [prediction for one in sets for prediction in one.predictions]


async def _answer(
    questions: QuestionSet,
    settings: EvalConfig,
    *,
    config: Config,
    runtime: LocalRuntime,
    router: Router,
    watcher: Watcher,
) -> None:
    if not questions.open_prompts:
        return

    def keep(group: TrajectoryGroup) -> None:
        row = questions.dataset.row(group.prompt)
        questions.file.append(predictions_of(group, row=row, name=questions.name, renderer=runtime.renderer))
        watcher.group(group)

    watcher.phase(f"evaluation on {questions.name}", len(questions.open_prompts))
    named = _named(questions.open_prompts, f"eval-{questions.name}")
    await _grow(named, settings, config=config, runtime=runtime, router=router, on_group=keep)


async def ask(
    questions: PromptDataset,
    settings: EvalConfig,
    *,
    config: Config,
    runtime: LocalRuntime,
    router: Router,
    on_group: Callable[[TrajectoryGroup], None] = lambda group: None,
) -> dict[str, float]:
    """Ask every question of the policy behind `router` and return the metrics of `Evaluation`.

    What is sampled is measured, not trained: no journal has it.
    """
    evaluation = Evaluation()

    def add(group: TrajectoryGroup) -> None:
        evaluation.add(group)
        on_group(group)

    named = _named(questions.prompts(), "eval")
    await _grow(named, settings, config=config, runtime=runtime, router=router, on_group=add)
    return evaluation.metrics(k=settings.samples)


async def _grow(
    prompts: Iterable[Prompt],
    settings: EvalConfig,
    *,
    config: Config,
    runtime: LocalRuntime,
    router: Router,
    on_group: Callable[[TrajectoryGroup], None],
) -> None:
    rollout = evaluation_rollout(config.rollout, samples=settings.samples, sampling=settings.sampling)
    await grow_all(
        prompts,
        runtime.rollouts(router, config=rollout, seed=config.run.seed, emit=lambda event: None),
        config=rollout,
        concurrency=settings.concurrency,
        on_group=on_group,
    )


def _named(prompts: Iterable[Prompt], name: str) -> Iterable[Prompt]:
    """With names of their own: rows of the training data are in flight on the same generators."""
    return (msgspec.structs.replace(prompt, prompt_id=f"{name}-{prompt.prompt_id}") for prompt in prompts)


def _about(config: Config, settings: EvalConfig, path: str) -> Config:
    """The configuration, materialised, as one that asks each question of `path` once, in the order of the file."""
    replace = msgspec.structs.replace
    data = replace(settings.data, path=path, epochs=1, order="file")
    return materialise(replace(config, eval=replace(settings, data=data)))


def set_names(paths: Sequence[str]) -> list[str]:
    """What the sets are called: by their files, in lower case. Raises `ConfigError` where two have one name.

    >>> set_names(["data/HotpotQA.jsonl", "data/aime24/test.jsonl", "gaia_test.parquet", "world:test"])
    ['hotpotqa', 'aime24', 'gaia', 'test']
    """
    names = [_set_name(path) for path in paths]
    if twice := [path for path, name in zip(paths, names, strict=True) if Counter(names)[name] > 1]:
        raise ConfigError(f"sets of one name: {', '.join(twice)}; rename a file - at $.eval.data.path")
    return names


def _set_name(path: str) -> str:
    if path.startswith(WORLD):
        return path.removeprefix(WORLD)
    place = Path(path)
    stem = place.parent.name if place.stem.lower() in NAMELESS and place.parent.name else place.stem
    return stem.lower().removesuffix("_test")


def answers_folder(config: Config, settings: EvalConfig, *, stem: str) -> Path:
    """Where answers lie that would be given again: the same model, prompts, tools and sampling have the same folder."""
    said: dict[str, Any] = msgspec.to_builtins(config)
    for key in ("eval", "generator", "learner", "runtime", "train"):
        del said[key]
    said["run"] = config.run.seed
    said["eval"] = msgspec.to_builtins([settings.samples, settings.sampling, settings.data.system_prompt])
    if isinstance(config.model, HfModel):
        files = sorted(path for path in Path(config.model.path).glob("*") if path.is_file())
        said["model"] = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.blake2b(msgspec.json.encode(said, order="deterministic"), digest_size=4).hexdigest()
    return Path(config.run.dir) / f"eval-{stem}-{digest}"
