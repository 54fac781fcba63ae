"""`arpo train`: one run from its configuration to its summary, or from where it was interrupted."""

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from actors.config import Config
from actors.materials import materialise
from actors.measure import ask
from actors.run_dir import RunDir, Status, Summary, write_whole
from actors.runtime import LocalRuntime
from actors.sft import StartingModel
from actors.watcher import Watcher
from engine import journal as journals
from engine.config import digest
from engine.controller import Controller
from engine.errors import cause
from engine.events import AnyEvent, Checkpointed, Evaluated, RunStarted, StepFinished
from engine.journal import Journal
from engine.metrics import MetricsFold, StepMetrics
from engine.run_state import RunState
from learner.advantage import estimate

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2


async def train(config: Config, run: RunDir, *, watcher: Watcher, is_fresh: bool = False) -> Summary:
    """Train to the end and return the summary, which is on disk by then.

    Bad input (configuration, model, data, traces) is refused before the run's folder is made, or emptied where
    `is_fresh` asks for that. Cancelling (Ctrl-C) leaves a run that goes on when it is started again: the summary says
    `interrupted`.
    """
    async with LocalRuntime(materialise(config), run.path) as runtime:
        inputs = Inputs(runtime)
        with run.locked():
            if is_fresh:
                run.clear()
            try:
                return await _train(config, run, runtime, inputs, watcher=watcher)
            finally:
                # Its processes end before another one may take the run.
                await runtime.aclose()


async def _train(config: Config, run: RunDir, runtime: LocalRuntime, inputs: "Inputs", *, watcher: Watcher) -> Summary:
    run.write_config(config)
    training = Training(config, run, watcher=watcher)
    status: Status = "failed"
    error = ""
    try:
        await training.run(runtime, inputs)
        status = "finished"
    except asyncio.CancelledError:
        status = "interrupted"
        raise
    except BaseException as failure:
        error = str(cause(failure))
        raise
    finally:
        summary = training.summary(status=status, error=error)
        run.write_summary(summary)
    return summary


class Inputs:
    """What a run reads, opened and checked; nothing has started by then."""

    def __init__(self, runtime: LocalRuntime) -> None:
        """Raises `ConfigError` or `DataError` for what cannot be used."""
        config = runtime.config
        self.dataset = runtime.prompts(config.data)
        self.questions = None if config.eval is None else runtime.prompts(config.eval.data)
        self.model = StartingModel(config, runtime)


class Training:
    """The parts of one training run, put together and run once."""

    def __init__(self, config: Config, run: RunDir, *, watcher: Watcher) -> None:
        self._config = config
        self._run = run
        self._watcher = watcher
        self._state = RunState()
        self._metrics = MetricsFold()
        self._evaluations: list[Evaluated] = []
        self._started_s = time.monotonic()
        self._base_t = 0.0
        self._num_starts = 0

    async def run(self, runtime: LocalRuntime, inputs: Inputs) -> None:
        """Start what the run needs, train, and leave the model in `hf/`."""
        config, questions = runtime.config, inputs.questions
        self._fold_journal()
        model_path = await inputs.model.make(watcher=self._watcher)
        self._watcher.phase("start", None)
        router = await runtime.start_generators(model_path)
        trainer = await runtime.start_trainer(model_path)

        async def evaluate() -> dict[str, float]:
            assert config.eval is not None
            assert questions is not None
            metrics = await ask(questions, config.eval, config=config, runtime=runtime, router=router)
            if all(metrics["success"] > before.metrics["success"] for before in self._evaluations):
                await trainer.export_hf(str(self._run.best))
            return metrics

        with Journal(self._run.journal) as journal, self._run.metrics.open("ab") as rows:
            emit = self._emitter(journal, rows)
            emit(RunStarted(run=self._run.path.name, config_digest=digest(self._config), resumed=self._num_starts))
            if questions is not None and not self._evaluations:
                emit(Evaluated(step=0, version=0, metrics=await evaluate()))
            self._watcher.phase("reinforcement learning", config.train.steps)
            controller = Controller(
                config=config.train,
                rollout_config=config.rollout,
                state=self._state,
                prompts=inputs.dataset,
                rollout=runtime.rollouts(router, config=config.rollout, seed=config.run.seed, emit=emit),
                credit=lambda group: estimate(group, config.learner.advantage),
                generators=runtime.generators,
                trainer=trainer,
                checkpoint_path=lambda step: str(self._run.checkpoints / f"step-{step:06d}"),
                emit=emit,
                evaluate=None if questions is None else evaluate,
            )
            await controller.run()
        await trainer.export_hf(str(self._run.path / "hf"))

    def summary(self, *, status: Status, error: str = "") -> Summary:
        """What the run has come to so far, over all processes that worked on it."""
        metrics = self._metrics
        return Summary(
            status=status,
            seed=self._config.run.seed,
            steps=max(self._state.reports, default=0),
            wall_s=self._now(),
            train_s=metrics.train_s,
            success_before=self._evaluations[0].metrics["success"] if self._evaluations else None,
            success_after=self._evaluations[-1].metrics["success"] if len(self._evaluations) > 1 else None,
            num_tool_calls_requested=metrics.num_tool_calls_requested,
            num_tool_calls_executed=metrics.num_tool_calls_executed,
            error=error,
        )

    # -- parts ------------------------------------------------------------------------------------------------

    def _fold_journal(self) -> None:
        """Go on from the journal; `metrics.jsonl` is written anew from it, so it never disagrees."""
        rows: list[StepMetrics] = []
        for event in journals.read(self._run.journal):
            self._state.apply(event)
            row = self._metrics.apply(event)
            if row is not None:
                rows.append(row)
            if isinstance(event, Evaluated):
                self._evaluations.append(event)
        self._base_t = self._state.last_t
        self._num_starts = self._state.num_starts
        write_whole(self._run.metrics, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        if self._num_starts:
            logger.info("%s: going on after step %d", self._run.path, self._state.step)

    def _emitter(self, journal: Journal, rows: BinaryIO) -> Callable[[AnyEvent], None]:
        def emit(event: AnyEvent) -> None:
            event = msgspec.structs.replace(event, t=self._now())
            journal.append(event)
            row = self._metrics.apply(event)
            match event:
                case StepFinished():
                    self._state.reports[event.report.step] = event.report
                    if row is not None:
                        rows.write(msgspec.json.encode(row) + b"\n")
                        rows.flush()
                        self._watcher.step(row)
                case Evaluated():
                    self._evaluations.append(event)
                    self._watcher.evaluated(event)
                case Checkpointed():
                    journal.sync()
                    self._prune_checkpoints()
                case _:
                    pass

        return emit

    def _prune_checkpoints(self) -> None:
        for old in sorted(self._run.checkpoints.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def _now(self) -> float:
        return self._base_t + time.monotonic() - self._started_s
