"""`arpo train`: one run from its configuration to its summary, or from where it was interrupted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from actors.collector import rarely
from actors.config import Config
from actors.control import run_control
from actors.credit import credit
from actors.materials import materialise
from actors.measure import ask
from actors.remote import RemoteTrainer
from actors.report.in_time import report_in_time
from actors.report.report import write_report
from actors.run_dir import RunDir, Status, Summary
from actors.run_log import RunLog
from actors.runtime import LocalRuntime
from actors.sft import StartingModel
from actors.sinks import check_sinks, open_sinks
from actors.watcher import Watcher, Watchers
from engine.controller import Controller
from engine.dataset import PromptDataset
from engine.errors import cause
from engine.events import ControlEvaluated, Evaluated, PhaseStarted
from engine.generator_load import measured
from engine.inference.router import PATIENCE_S, Router
from engine.types import TrajectoryGroup, WeightRef
from engine.watchdog import Watchdog
from learner.algorithms.batch_credit import finish_batch

logger = logging.getLogger(__name__)

ANSWER_S = 30.0
"""How long a generator may take to answer when nothing else happens."""
LEARNING = "reinforcement learning"
"""Name of the phase."""
VALIDATION = "validation_success"
"""Among the metrics of an evaluation: success on the questions that choose `best/`."""


def chosen_by(metrics: Mapping[str, float]) -> float:
    """Whether the weights that were measured are the best so far: by `eval.validation`, where there is one."""
    return metrics.get(VALIDATION, metrics["success"])


async def train(config: Config, run: RunDir, *, watcher: Watcher, is_fresh: bool = False) -> Summary:
    """Train to the end and return the summary, which is on disk by then.

    Bad input (configuration, model, data, traces) is refused before the run's folder is made, or emptied where
    `is_fresh` asks for that. Cancelling (Ctrl-C) leaves a run that goes on when it is started again: the summary says
    `interrupted`, and there is a report where one can be had in a moment.
    """
    async with LocalRuntime(materialise(config), run.path) as runtime:
        inputs = Inputs(runtime)
        with run.locked():
            if is_fresh:
                run.clear()
            try:
                return await _train(config, run, runtime, inputs, watcher=watcher)
            except asyncio.CancelledError:
                await runtime.aclose()  # first, so that the report has the machine for itself
                watcher.phase("report", None)
                await report_in_time(run)
                raise
            finally:
                # Its processes end before another one may take the run.
                await runtime.aclose()


async def _train(config: Config, run: RunDir, runtime: LocalRuntime, inputs: "Inputs", *, watcher: Watcher) -> Summary:
    def training(log: RunLog) -> Awaitable[None]:
        return Training(runtime.config, run, log, watcher=watcher).run(runtime, inputs)

    summary = await recorded(config, run, training, watcher=watcher)
    watcher.phase("report", None)
    write_report(run, text=runtime.renderer.text)
    return summary


async def recorded(
    config: Config, run: RunDir, work: Callable[[RunLog], Awaitable[None]], *, watcher: Watcher
) -> Summary:
    """Do `work` under the log of a run that is locked; the summary on disk says how it ended, however that was."""
    run.write_config(config)
    status: Status = "failed"
    error = ""
    async with open_sinks(config, run) as sinks:
        with RunLog(config, run, watcher=Watchers(watcher, sinks)) as log:
            try:
                await work(log)
                status = "finished"
            except asyncio.CancelledError:
                status = "interrupted"
                raise
            except BaseException as failure:
                error = str(cause(failure))
                raise
            finally:
                summary = log.summary(status=status, error=error)
                try:
                    run.write_summary(summary)
                except OSError as failure:  # such as a full disk, which is then what ended the run
                    logger.warning("%s: no summary: %s", run.path, failure)
    return summary


class Inputs:
    """What a run reads, opened and checked; nothing has started by then."""

    def __init__(self, runtime: LocalRuntime) -> None:
        """Raises `ConfigError` or `DataError` for what cannot be used."""
        config = runtime.config
        check_sinks(config.metrics)
        self.dataset = runtime.prompts(config.data)
        self.questions = None if config.eval is None else runtime.prompts(config.eval.data)
        validation = None if config.eval is None else config.eval.validation
        self.validation = None if validation is None else runtime.prompts(validation)
        self.model = StartingModel(config, runtime)


class Training:
    """The parts of one training run, put together and run once."""

    def __init__(self, config: Config, run: RunDir, log: RunLog, *, watcher: Watcher) -> None:
        """`config` is materialised."""
        self._config = config
        self._run = run
        self._log = log
        self._watcher = watcher

    async def run(self, runtime: LocalRuntime, inputs: Inputs) -> None:
        """Start what the run needs, train, and leave the model in `hf/`."""
        log = self._log
        model_path = await inputs.model.make(emit=log.emit)
        log.emit(PhaseStarted(name="start"))
        async with asyncio.TaskGroup() as starts:
            generators = starts.create_task(runtime.start_generators(model_path), name="start generators")
            learner = starts.create_task(runtime.start_trainer(model_path), name="start learner")
        await self.learn(runtime, inputs, generators.result(), learner.result(), model_path=model_path)

    async def learn(
        self, runtime: LocalRuntime, inputs: Inputs, router: Router, trainer: RemoteTrainer, *, model_path: str
    ) -> None:
        """`run` with parts that have started. The learner is fresh, of the model `model_path`."""
        log = self._log

        def hear(group: TrajectoryGroup) -> None:
            log.on_event()
            self._watcher.group(group)

        async def ask_all(phase: str, *files: PromptDataset) -> list[dict[str, float]]:
            assert self._config.eval is not None
            # Before and after, so that what an evaluation costs the generators is told apart from what training does.
            log.emit(await measured(runtime.generators))
            log.emit(PhaseStarted(name=phase, total=sum(map(len, files))))
            found = [
                await ask(
                    questions,
                    self._config.eval,
                    config=self._config,
                    runtime=runtime,
                    router=router,
                    on_group=hear,
                )
                for questions in files
            ]
            log.emit(await measured(runtime.generators))
            return found

        async def evaluate() -> dict[str, float]:
            assert inputs.questions is not None
            if inputs.validation is None:
                (metrics,) = await ask_all("evaluation", inputs.questions)
            else:
                metrics, validation = await ask_all("evaluation", inputs.questions, inputs.validation)
                metrics[VALIDATION] = validation["success"]
            if all(chosen_by(metrics) > chosen_by(before.metrics) for before in log.evaluations):
                await trainer.export_hf(str(self._run.best))
            log.emit(PhaseStarted(name=LEARNING, total=self._config.train.steps))
            return metrics

        if inputs.questions is not None and not log.evaluations:
            log.emit(Evaluated(step=0, version=0, metrics=await evaluate()))
        else:
            log.emit(PhaseStarted(name=LEARNING, total=self._config.train.steps))
        await self._learn(runtime, inputs, router, trainer, evaluate=None if inputs.questions is None else evaluate)
        await trainer.export_hf(str(self._run.path / "hf"))
        if self._config.eval is not None and self._config.eval.control and log.control is None:
            assert inputs.questions is not None
            steps = await self._train_control(runtime, inputs, model_path)
            (metrics,) = await ask_all("evaluation of the control", inputs.questions)
            log.emit(ControlEvaluated(num_steps=steps, metrics=metrics))

    async def _learn(
        self,
        runtime: LocalRuntime,
        inputs: Inputs,
        router: Router,
        trainer: RemoteTrainer,
        *,
        evaluate: Callable[[], Awaitable[dict[str, float]]] | None,
    ) -> None:
        config, emit = self._config, self._log.emit
        controller = Controller(
            config=config.train,
            rollout_config=config.rollout,
            state=self._log.state,
            prompts=inputs.dataset,
            rollout=runtime.rollouts(router, config=config.rollout, seed=config.run.seed, emit=emit),
            credit=lambda group: credit(group, config),
            credit_batch=lambda samples: finish_batch(samples, config.learner.advantage),
            generators=runtime.generators,
            trainer=trainer,
            checkpoint_path=lambda step: str(self._run.checkpoints / f"step-{step:06d}"),
            emit=emit,
            evaluate=evaluate,
        )
        dog = self._watchdog(runtime)
        self._log.on_event = dog.progress
        with rarely():
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(dog.watch(), name="watchdog")
                await controller.run()
                watching.cancel()

    def _watchdog(self, runtime: LocalRuntime) -> Watchdog:
        config = self._config.runtime

        async def rescue() -> None:
            async with asyncio.TaskGroup() as probes:
                for generator in runtime.generators:
                    probes.create_task(generator.probe(ANSWER_S), name=f"probe {generator.name}")

        def dump(text: str) -> None:
            logs = self._run.path / "logs"
            logs.mkdir(exist_ok=True)
            (logs / f"stall-{len(list(logs.glob('stall-*')))}.txt").write_text(text + "\n", encoding="utf-8")

        # No single wait is longer than the longest deadline, so something must happen within both together.
        limit_s = config.patience_s + max(self._config.train.step_timeout_s, PATIENCE_S)
        return Watchdog(patience_s=config.patience_s, limit_s=limit_s, dump=dump, rescue=rescue)

    async def _train_control(self, runtime: LocalRuntime, inputs: Inputs, model_path: str) -> int:
        """Make the control's model and have the generators sample from it; returns its steps."""
        log, target = self._log, self._run.path / "control"
        steps = await run_control(
            self._config,
            runtime,
            inputs.model.traces,
            model_path=model_path,
            target=target,
            wall_s=log.phases.wall_s(LEARNING),
            reports=next(phase.reports for phase in reversed(log.phases.phases) if phase.reports),
            emit=log.emit,
        )
        version = max([(await generator.statistics()).version for generator in runtime.generators]) + 1
        for generator in runtime.generators:
            await generator.update_weights(WeightRef(version=version, path=str(target)), mode="retract")
        return steps
