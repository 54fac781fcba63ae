"""Control: what RL is compared with; the last stage of the cold start goes on for as long as RL took.

It begins with the model that RL began with, draws its own batches from the same traces, and has its learning-rate
schedule stretched to its length: the best that imitation makes of the same wall time.
"""

import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from actors.config import Config
from actors.runtime import LocalRuntime
from actors.sft import ColdStart, TraceFiles
from engine.coins import seed_of
from engine.events import AnyEvent, PhaseStarted
from engine.reports import StepReport
from learner.config import CosineSchedule


async def run_control(
    config: Config,
    runtime: LocalRuntime,
    traces: TraceFiles,
    *,
    model_path: str,
    target: Path,
    wall_s: float,
    reports: Sequence[StepReport],
    emit: Callable[[AnyEvent], None],
) -> int:
    """Train the model of `model_path` for about `wall_s` seconds and write it to `target`; returns the steps.

    `reports` are of the last stage before: they say how long a step takes.
    """
    stage = config.sft[-1]
    steps = max(round(wall_s / statistics.median(report.duration_s for report in reports)), 1)
    schedule = stage.learner.schedule
    if isinstance(schedule, CosineSchedule):
        schedule = replace(schedule, total_steps=steps)
    longer = replace(stage, steps=steps, until_loss=None, learner=replace(stage.learner, schedule=schedule))
    emit(PhaseStarted(name="control", total=steps))
    seed = seed_of(config.run.seed, "control")
    cold_start = ColdStart(longer, runtime, traces, seed=seed, key=f"sft.{len(config.sft) - 1}")
    # Of a run that was interrupted before its control was measured; this one may have taken other steps.
    shutil.rmtree(target, ignore_errors=True)
    await cold_start.run(model_path, target, emit=emit)
    return steps
