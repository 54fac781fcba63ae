"""`arpo bench end-to-end`: completions that are sampled, rewarded and trained a second, beside TRL's GRPOTrainer.

| figure                        | what it is                                                                          |
|-------------------------------|-------------------------------------------------------------------------------------|
| `completions_per_s`           | of the engine on two cores                                                          |
| `completions_per_s_one_core`  | of the engine on one core                                                           |
| `trl_...`                     | the same of TRL, with as many threads as cores                                      |
| `speedup_vs_trl`, and so on   | the one by the other, of pairs that ran next to each other                          |

Held equal: the model and its weights (the demo's shape, float32, on the CPU), the prompts and their order, 16 of them a
step with 8 completions each, the template, temperature 1 without any cut, completions of 128 tokens at most that end
where the policy ends them, the reward, GRPO's advantages in their groups, the clip, AdamW with its rate and clipping of
gradients, one update a step; the torch and transformers of this environment; and the cores: all processes of an arm
share one, or two.

Not equal: TRL samples, then trains, on weights that are never old; the engine samples a step ahead of its training
(staleness 1), and corrects for it. On two cores TRL has two threads, the engine a process of one thread for sampling
and another for training. TRL samples by `transformers.generate`, its default; vLLM, its other way, is not here. The
engine writes its journal, TRL logs nothing. Both are timed between the ends of steps: no start-up, no checkpoint, not
the first steps, and of the engine not the last ones, behind which nothing is sampled.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from actors.bench import end_to_end_engine as engine
from actors.bench.bench import Bench, Record, Records, median_of, median_ratio
from actors.bench.end_to_end_task import Task, Told, rate
from actors.bench.own_process import in_own_process
from actors.bench.trl_install import trl_folder, with_trl
from engine.errors import ConfigError

_TRL_TIMEOUT_S = 900.0
"""Of a run of TRL."""
_WARM_UP = 2
"""Steps before the clock runs."""
_ONE, _TWO = "one_core", "two_cores"


def benches(
    folder: Path, *, is_quick: bool, has_trl: bool = False, say: Callable[[str], None] = lambda line: None
) -> Sequence[Bench]:
    """Quick: fewer steps, once. Raises `ConfigError` where TRL is asked for and cannot be had."""
    cores = sorted(os.sched_getaffinity(0))
    places = {_ONE: cores[:1]} | ({_TWO: cores[:2]} if len(cores) > 1 else {})
    skipped = {} if len(cores) > 1 else {f"{side}_{_TWO}": "one core is all there is" for side in ("engine", "trl")}
    arms: dict[str, Callable[[int], Record]] = {}

    def add(side: str, run: Callable[..., Record], **arguments: Any) -> None:
        for name, where in places.items():
            arms[f"{side}_{name}"] = partial(_in_place, run=run, cores=where, folder=folder, **arguments)

    add("engine", engine_run, steps=12 if is_quick else 24)
    if has_trl:
        add("trl", trl_run, steps=6 if is_quick else 8, found=trl_folder(say=say))
    else:
        skipped |= {f"trl_{name}": "--with-trl installs it, and runs it" for name in places}
    repetitions = 1 if is_quick else 3
    return (Bench(name="end-to-end", arms=arms, repetitions=repetitions, figures=figures, skipped=skipped),)


def _in_place(seed: int, *, run: Callable[..., Record], cores: Sequence[int], **arguments: Any) -> Record:
    return in_own_process(run, cores=cores, seed=seed, **arguments)


def figures(records: Records) -> dict[str, float]:
    """Of the arms that there are."""
    found: dict[str, float] = {}
    for cores, suffix in ((_TWO, ""), (_ONE, "_one_core")):
        ours, theirs = f"engine_{cores}", f"trl_{cores}"
        for arm, prefix in ((ours, ""), (theirs, "trl_")):
            if arm in records:
                found[f"{prefix}completions_per_s{suffix}"] = median_of(records, arm, "completions_per_s")
        if ours in records and theirs in records:
            found[f"speedup_vs_trl{suffix}"] = median_ratio(records, ours, theirs, of="completions_per_s")
    return found


def engine_run(*, folder: Path, seed: int, steps: int) -> Record:
    """A run of the engine on the cores that this process may use."""
    config = engine.configured(folder, seed=seed, steps=steps)
    told = engine.run(config, folder / f"engine-{seed}-{len(os.sched_getaffinity(0))}")
    return record_of(told, engine.task_of(config, threads=1), skip_last=2)


def trl_run(*, folder: Path, found: Path, seed: int, steps: int) -> Record:
    """A run of TRL, which lies in `found`, on the cores that this process may use.

    Raises `ConfigError` with the last it said where it fails.
    """
    threads = len(os.sched_getaffinity(0))
    task = engine.task_of(engine.configured(folder, seed=seed, steps=steps), threads=threads)
    place = folder / f"trl-{seed}-{threads}"
    place.mkdir()
    given, answer, log = place / "task.json", place / "told.json", place / "log"
    given.write_bytes(msgspec.json.encode(task))
    command = [sys.executable, "-m", "actors.bench.trl_arm", str(given), str(answer)]
    environment = with_trl(found, threads=threads)
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                command, env=environment, stdout=output, stderr=output, timeout=_TRL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"TRL: not done after {_TRL_TIMEOUT_S:g} s") from None
    if done.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise ConfigError(f"TRL: {said[-1] if said else f'exit code {done.returncode}'}")
    return record_of(msgspec.json.decode(answer.read_bytes(), type=Told), task)


def record_of(told: Told, task: Task, *, skip_last: int = 0) -> Record:
    """What both sides are measured by."""
    completions = task.num_prompts * task.num_completions
    found = rate(told.ends_s, completions=completions, skip_first=_WARM_UP, skip_last=skip_last)
    return {"completions_per_s": found, "tokens_per_completion": told.tokens}
