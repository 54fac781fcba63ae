"""`arpo bench tool-budget`: the success that tool calls buy, by algorithm and by where calls are spent.

| figure                     | what it is                                                                             |
|----------------------------|----------------------------------------------------------------------------------------|
| `calls_ratio_vs_grpo`      | executed calls until `ours` is as good as `chain` is in the end, by those of `chain`   |
| `tokens_ratio_vs_grpo`     | the same in sampled tokens; `requested_calls_...`: in calls that were asked for        |
| `calls_ratio_at_90`        | until both were at 90 %; without an interval, as for 60, 70, 80 and 95                 |
| `calls_ratio_small_groups` | the first one, with M = 4 in both                                                      |
| `..._fixed_cohorts`        | the first one, with no group replaced in either                                        |
| `success_ours`, `..._grpo` | greedy, on held-out questions, at the end of a run                                     |
| `entropy_minus_uniform`    | mean height of the curve of `arpo` above that of `uniform`, at equal executed calls    |
| `ours_minus_blind`         | the same of `ours` and of `ours_blind`                                                 |

Each with `..._ci_low` and `..._ci_high`; medians over seeds, with which both arms of a pair were run. `cached_...` is
the same with results that are used again. docs/benchmarks.md says what is held equal, and how to read the table.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import msgspec

from actors.bench.bench import Bench, Record
from actors.bench.budget_arms import ARMS, CACHED, CONFIG, QUICK
from actors.bench.budget_figures import BASE, OURS, figures
from actors.bench.budget_run import Leash, train_once
from actors.config import Config, RunConfig
from actors.materials import materialise
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from engine.config import digest

SEEDS = 8
"""Pairs of `chain` and `ours`; the other arms get `OTHER_SEEDS`."""
OTHER_SEEDS = 3
CACHED_SEEDS = 3
CACHE_NAME = "+cache"
"""Behind the name of an arm whose calls may be answered by earlier ones."""
JOBS = 2
"""A run takes turns between sampling and learning, so it keeps one core busy."""


def benches(
    folder: Path, *, is_quick: bool, kept: Path | None = None, seeds: int = SEEDS, jobs: int = JOBS
) -> Sequence[Bench]:
    """The headline without reuse of results, and behind it the same with it. `kept`, or else `folder`, keeps the runs
    and the model they start from; `seeds` are those of `chain` and `ours`."""
    folder = folder if kept is None else kept
    if is_quick:
        return (_part(folder, extra=QUICK, arms=(BASE, OURS), seeds=1, other_seeds=1, jobs=jobs),)
    return (
        _part(folder, seeds=seeds, other_seeds=min(seeds, OTHER_SEEDS), jobs=jobs),
        _part(folder, extra=CACHED, suffix=CACHE_NAME, seeds=min(seeds, CACHED_SEEDS), other_seeds=1, jobs=jobs),
    )


def _part(
    folder: Path,
    *,
    extra: Sequence[str] = (),
    arms: Sequence[str] = tuple(ARMS),
    suffix: str = "",
    seeds: int,
    other_seeds: int,
    jobs: int,
) -> Bench:
    runs = Runs(folder, extra=extra)
    return Bench(
        name=f"tool-budget{suffix}",
        arms={f"{arm}{suffix}": partial(runs.run, arm) for arm in arms},
        repetitions=seeds,
        limits={f"{arm}{suffix}": other_seeds for arm in arms if arm not in (BASE, OURS)},
        keys={f"{arm}{suffix}": runs.key(arm) for arm in arms},
        figures=lambda records: figures(
            {name.removesuffix(suffix): found for name, found in records.items()}, prefix="cached_" if suffix else ""
        ),
        jobs=jobs,
        prepare=runs.prepare,
        stop=runs.stop,
    )


class Runs:
    """The runs of all arms, from one model."""

    def __init__(self, folder: Path, *, extra: Sequence[str]) -> None:
        """`extra` is laid over every arm."""
        self._folder = folder
        self._extra = tuple(extra)
        self._leash: Leash | None = None

    def key(self, arm: str) -> str:
        """What stands for the whole configuration of an arm: not where it lies, and not its seed."""
        return digest(msgspec.structs.replace(self._config(arm), run=RunConfig()))

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make the model that all runs start from, unless it is there; before the first `run`."""
        self._leash = Leash()
        say(f"the model that all runs start from: made once, in {self._folder / 'made'}")
        say(f"it is {self.model}")

    def run(self, arm: str, seed: int) -> Record:
        """One training run to its end."""
        assert self._leash is not None, "prepared"
        start = ["sft=", "model=", "model.kind=hf", f"model.path={self.model}"]
        # The seed draws every token, and with them which prompts are trained on; so does the order of the prompts.
        start += [f"run.seed={seed}", f"data.shuffle_seed={seed}"]
        name = f"{arm}-{self.key(arm)}-{seed}"
        overlay = (*ARMS[arm], *self._extra, *start)
        return train_once(CONFIG, overlay, folder=self._folder, name=name, leash=self._leash)

    def stop(self) -> None:
        """End the runs that are under way. They go on where they were when they are asked for again."""
        if self._leash is not None:
            self._leash.cut()

    @cached_property
    def model(self) -> str:
        config = materialise(self._config(BASE, f"run.dir={self._folder}"))

        async def cold_start() -> str:
            async with LocalRuntime(config, self._folder) as runtime:
                return await starting_model(config, runtime, emit=lambda event: None)

        return asyncio.run(cold_start())

    def _config(self, arm: str, *overrides: str) -> Config:
        return Config.load(CONFIG, *ARMS[arm], *self._extra, *overrides)
