"""Sinks: where the figures of each step go beside `metrics.jsonl`; one that fails never stops a run.

RunLog ──row──> Sinks ──figures by name──> TensorBoard | Weights & Biases | Prometheus | yours
"""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import Protocol

import msgspec

from actors.config import Config
from actors.metrics_config import MetricsConfig
from actors.run_dir import RunDir
from actors.watcher import Watcher
from engine.errors import ArpoError, ConfigError, boundary
from engine.events import Evaluated
from engine.metrics import StepMetrics

logger = logging.getLogger(__name__)


class SinkError(ArpoError):
    """A sink raised; the run goes on without it."""


class Sink(Protocol):
    """Takes figures as they come. Calls are short: the run waits for them. What it raises costs the run nothing."""

    is_rewritten: bool
    """Whether it begins empty in each process of a run, and is told again what earlier ones came to."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures behind a step: those of `StepMetrics` by their names, or those of an evaluation, `eval/...`."""
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


class Sinks(Watcher):
    """Tells all sinks of a run, each by its name."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def resumed(self, rows: Sequence[StepMetrics], evaluations: Sequence[Evaluated]) -> None:
        names = [name for name, sink in self._sinks.items() if sink.is_rewritten]
        for row in rows:
            self._tell(names, row.step, figures_of(row))
        for event in evaluations:
            self._tell(names, event.step, _evaluation(event))

    def step(self, row: StepMetrics) -> None:
        self._tell(list(self._sinks), row.step, figures_of(row))

    def evaluated(self, event: Evaluated) -> None:
        self._tell(list(self._sinks), event.step, _evaluation(event))

    def add(self, name: str, make: Callable[[], Sink]) -> None:
        """Open one more; where that fails there is none."""
        try:
            with boundary(SinkError, name):
                self._sinks[name] = make()
        except ArpoError as error:
            logger.warning("%s; the run goes on without it", error)

    def close(self) -> None:
        for name in list(self._sinks):
            self._let_go(name)

    def _tell(self, names: Sequence[str], step: int, figures: Mapping[str, float]) -> None:
        for name in names:
            if (sink := self._sinks.get(name)) is None:
                continue
            try:
                with boundary(SinkError, name):
                    sink.write(step, figures)
            except ArpoError as error:
                logger.warning("%s; the run goes on without it", error)
                self._let_go(name)

    def _let_go(self, name: str) -> None:
        sink = self._sinks.pop(name)
        try:
            with boundary(SinkError, name):
                sink.close()
        except ArpoError as error:
            logger.warning("%s, as it was closed", error)


def figures_of(row: StepMetrics) -> dict[str, float]:
    """The numbers of a row by their names; the step is none of them."""
    found = msgspec.structs.asdict(row)
    return {name: float(value) for name, value in found.items() if name != "step" and isinstance(value, int | float)}


def _evaluation(event: Evaluated) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in event.metrics.items()}


def check_sinks(config: MetricsConfig) -> None:
    """Raises `ConfigError` for a sink whose package is not installed."""
    asked = {"tensorboard": config.tensorboard, "wandb": config.wandb is not None}
    for name, is_asked in asked.items():
        if is_asked and find_spec(name) is None:
            raise ConfigError(f"{name} is not installed: pip install 'arpo-engine[{name}]' - at $.metrics.{name}")


@asynccontextmanager
async def open_sinks(config: Config, run: RunDir) -> AsyncGenerator[Sinks, None]:
    """The sinks that `[metrics]` names, for the length of the block."""
    sinks = Sinks({})
    async with AsyncExitStack() as stack:
        stack.callback(sinks.close)
        if config.metrics.tensorboard:
            sinks.add("tensorboard", lambda: _tensorboard(run))
        if config.metrics.wandb is not None:
            sinks.add("wandb", lambda: _wandb(config, run))
        if (endpoint := config.metrics.prometheus) is not None:
            from actors.sink_prometheus import PrometheusSink

            page = PrometheusSink(run.path.name)
            try:
                with boundary(SinkError, "prometheus"):
                    address = await stack.enter_async_context(page.listening(endpoint.host, endpoint.port))
            except ArpoError as error:
                logger.warning("%s; the run goes on without it", error)
            else:
                logger.info("figures of the last step are at %s/metrics", address)
                sinks.add("prometheus", lambda: page)
        yield sinks


# A package that is there may still not import, which is a failure of its sink like any other.


def _tensorboard(run: RunDir) -> Sink:
    from actors.sink_tensorboard import TensorBoardSink  # its door

    return TensorBoardSink(run.path / "tensorboard")


def _wandb(config: Config, run: RunDir) -> Sink:
    from actors.sink_wandb import WandbSink  # its door

    assert config.metrics.wandb is not None
    return WandbSink(config.metrics.wandb, config, run.path)
