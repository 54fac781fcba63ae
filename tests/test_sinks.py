"""Sinks: what they are told, that one that fails costs a run nothing, and the shipped ones."""

import asyncio
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import msgspec
import pytest

from actors.config import Config, HfModel
from actors.metrics_config import MetricsConfig, PrometheusConfig, WandbConfig
from actors.run_dir import RunDir, check_same
from actors.sink_prometheus import CONTENT_TYPE, PrometheusSink
from actors.sinks import Sinks, check_sinks, open_sinks
from actors.watcher import Watcher, Watchers
from engine.dataset import DataConfig
from engine.errors import ConfigError
from engine.events import Evaluated
from engine.metrics import StepMetrics

FIELDS = {field.name: 0 for field in msgspec.structs.fields(StepMetrics)}


def row(step: int, *, reward: float = 0.5) -> StepMetrics:
    return StepMetrics(**{**FIELDS, "mismatch": "none", "step": step, "reward": reward})  # type: ignore[arg-type]


def config(metrics: MetricsConfig) -> Config:
    return Config(model=HfModel(path="model"), data=DataConfig(path="data.jsonl"), metrics=metrics)


class Sink:
    """Remembers; raises from the step on that it is told to."""

    def __init__(self, *, is_rewritten: bool = False, fails_at: int = 10**9, fails_to_close: bool = False) -> None:
        self.is_rewritten = is_rewritten
        self.told: list[tuple[int, Mapping[str, float]]] = []
        self.num_closed = 0
        self._fails_at = fails_at
        self._fails_to_close = fails_to_close

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= self._fails_at:
            raise OSError("disk full")
        self.told.append((step, figures))

    def close(self) -> None:
        self.num_closed += 1
        if self._fails_to_close:
            raise OSError("still full")

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.told]


def test_every_number_of_a_row_is_told_by_its_name_and_evaluations_too() -> None:
    sink = Sink()
    sinks = Sinks({"mine": sink})
    sinks.event(Evaluated(step=0, version=0, metrics={"success": 0.25}))
    sinks.step(row(1, reward=0.75))
    (_, evaluated), (step, figures) = sink.told
    assert evaluated == {"eval/success": 0.25}
    assert (step, figures["reward"]) == (1, 0.75)
    assert set(figures) == set(FIELDS) - {"step", "mismatch"}


def test_a_sink_that_fails_is_said_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Sink(), Sink(fails_at=2, fails_to_close=True)
    sinks = Sinks({"bad": bad, "good": good})
    with caplog.at_level(logging.WARNING):
        for step in range(1, 5):
            sinks.step(row(step))
        sinks.close()
    assert (good.steps, bad.steps) == ([1, 2, 3, 4], [1])
    assert (good.num_closed, bad.num_closed) == (1, 1)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "bad: OSError: disk full; the run goes on without it",
        "bad: OSError: still full, as it was closed",
    ]


def test_one_that_cannot_be_opened_is_said_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Sink:
        raise PermissionError("no key")

    sinks = Sinks({})
    sinks.add("theirs", make)
    sinks.step(row(1))
    assert [r.getMessage() for r in caplog.records] == ["theirs: PermissionError: no key; the run goes on without it"]


def test_only_what_begins_empty_is_told_again_what_came_before() -> None:
    empty, lasting = Sink(is_rewritten=True), Sink()
    sinks = Sinks({"empty": empty, "lasting": lasting})
    sinks.resumed([row(1), row(2)], [Evaluated(step=2, version=2, metrics={"success": 1.0})])
    sinks.step(row(3))
    assert (empty.steps, lasting.steps) == ([1, 2, 2, 3], [3])


def test_several_watchers_hear_the_same_in_their_order() -> None:
    heard: list[tuple[str, int]] = []

    class Ear(Watcher):
        def __init__(self, name: str) -> None:
            self.name = name

        def step(self, row: StepMetrics) -> None:
            heard.append((self.name, row.step))

        def evaluated(self, event: Evaluated) -> None:
            heard.append((self.name, -event.step))

    both = Watchers(Ear("a"), Ear("b"))
    both.step(row(1))
    both.event(Evaluated(step=1, version=1, metrics={}))
    assert heard == [("a", 1), ("b", 1), ("a", -1), ("b", -1)]
    methods = {name for name in vars(Watcher) if not name.startswith("_")}
    assert methods <= set(vars(Watchers)), "a method of a watcher that several would not hear"


def test_the_page_has_every_figure_in_prometheus_form() -> None:
    sink = PrometheusSink('a "run"')
    sink.write(3, {"eval/pass@5": 0.5, "loss": float("nan"), "grad_norm": float("inf")})
    assert sink.page.splitlines() == [
        "# TYPE arpo_eval_pass_5 gauge",
        'arpo_eval_pass_5{run="a \\"run\\""} 0.5',
        "# TYPE arpo_grad_norm gauge",
        'arpo_grad_norm{run="a \\"run\\""} +Inf',
        "# TYPE arpo_loss gauge",
        'arpo_loss{run="a \\"run\\""} NaN',
        "# TYPE arpo_step gauge",
        'arpo_step{run="a \\"run\\""} 3.0',
    ]


def test_the_endpoint_listens_on_loopback_while_the_run_lasts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        metrics = MetricsConfig(prometheus=PrometheusConfig(port=0))
        with caplog.at_level(logging.INFO):
            async with (
                open_sinks(config(metrics), RunDir(tmp_path / "run-7")) as sinks,
                aiohttp.ClientSession() as http,
            ):
                address = caplog.records[-1].getMessage().split()[-1]
                assert address.startswith("http://127.0.0.1:")
                sinks.step(row(4))
                async with http.get(address) as response:
                    assert response.headers["Content-Type"] == CONTENT_TYPE
                    assert 'arpo_reward{run="run-7"} 0.5\n' in await response.text()
            async with aiohttp.ClientSession() as http:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await http.get(address)

    asyncio.run(main())


def test_a_port_that_is_taken_costs_the_run_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with PrometheusSink("other").listening("127.0.0.1", 0) as taken:
            metrics = MetricsConfig(prometheus=PrometheusConfig(port=int(taken.rpartition(":")[2])))
            async with open_sinks(config(metrics), RunDir(tmp_path)) as sinks:
                sinks.step(row(1))

    asyncio.run(main())
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("prometheus: OSError: ")
    assert warning.endswith("; the run goes on without it")


@pytest.mark.parametrize(
    ("name", "metrics"),
    [("tensorboard", MetricsConfig(tensorboard=True)), ("wandb", MetricsConfig(wandb=WandbConfig(project="p")))],
)
def test_a_package_that_is_missing_is_one_line_with_its_key(name: str, metrics: MetricsConfig) -> None:
    if find_spec(name) is None:
        with pytest.raises(ConfigError, match=rf"pip install 'arpo-engine\[{name}\]' - at \$\.metrics\.{name}$"):
            check_sinks(metrics)
    else:
        check_sinks(metrics)


def test_who_watches_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config(config(MetricsConfig()))
    check_same(run, config(MetricsConfig(tensorboard=True)))
    other = msgspec.structs.replace(config(MetricsConfig()), data=DataConfig(path="other.jsonl"))
    with pytest.raises(ConfigError, match=r"data\.path"):
        check_same(run, other)


@pytest.mark.real
@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("default")  # of its reader
def test_tensorboard_reads_one_curve_of_a_run_that_went_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    async def main() -> None:
        for first in (1, 4):
            async with open_sinks(config(MetricsConfig(tensorboard=True)), RunDir(tmp_path)) as sinks:
                sinks.resumed([row(step) for step in range(1, first)], [])
                for step in range(first, first + 3):
                    sinks.step(row(step))

    asyncio.run(main())
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("reward")] == [(step, 0.5) for step in range(1, 7)]


@pytest.mark.real
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: pip install 'arpo-engine[wandb]'")
@pytest.mark.filterwarnings("default")
def test_wandb_writes_offline_and_a_run_that_goes_on_is_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        metrics = MetricsConfig(wandb=WandbConfig(project="arpo", mode="offline"))
        for step in (1, 2):
            async with open_sinks(config(metrics), RunDir(tmp_path)) as sinks:
                sinks.step(row(step))

    asyncio.run(main())
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1
