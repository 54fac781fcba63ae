"""The log of a run: every event on disk, folded and told once, and the next process goes on where it ends."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from actors.config import Config, HfModel
from actors.run_dir import RunDir
from actors.run_log import RunLog
from actors.watcher import Watcher
from engine import codec, journal
from engine.dataset import DataConfig
from engine.events import (
    AnyEvent,
    BatchTaken,
    Checkpointed,
    ControlEvaluated,
    Evaluated,
    GeneratorsMeasured,
    PhaseStarted,
    RunFinished,
    RunStarted,
    StepFinished,
    SupervisedStep,
)
from engine.metrics import StepMetrics
from engine.reports import StepReport


class Listener(Watcher):
    """Writes down what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def phase(self, name: str, total: int | None) -> None:
        self.told.append(("phase", (name, total)))

    def resumed(self, rows: Sequence[StepMetrics], evaluations: Sequence[Evaluated]) -> None:
        self.told.append(("resumed", ([row.step for row in rows], [event.step for event in evaluations])))

    def sft_step(self, report: StepReport) -> None:
        self.told.append(("sft", report.step))

    def step(self, row: StepMetrics) -> None:
        self.told.append(("step", row.step))

    def evaluated(self, event: Evaluated) -> None:
        self.told.append(("evaluated", event.step))

    def control_evaluated(self, event: ControlEvaluated) -> None:
        self.told.append(("control", event.num_steps))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


def opened(run: RunDir, *, watcher: Watcher | None = None) -> RunLog:
    config = Config(model=HfModel(path="model"), data=DataConfig(path="data.parquet"))
    return RunLog(config, run, watcher=watcher or Watcher())


def report(step: int) -> StepReport:
    zeros = dict.fromkeys(
        ("loss", "grad_norm", "learning_rate", "entropy", "kl_rollout", "ratio_max", "clip_fraction"), 0.0
    )
    return StepReport(step=step, version=step, num_trained_tokens=5, num_computed_tokens=9, duration_s=0.5, **zeros)


def stepped(step: int) -> list[AnyEvent]:
    return [BatchTaken(step=step, prompt_ids=()), StepFinished(report=report(step))]


def evaluated(step: int, success: float) -> Evaluated:
    return Evaluated(step=step, version=step, metrics={"success": success})


def steps_on_disk(run: RunDir) -> list[int]:
    return [msgspec.json.decode(line)["step"] for line in run.metrics.read_bytes().splitlines()]


def test_every_event_is_journaled_with_the_time_of_the_run_and_told_once(run: RunDir) -> None:
    listener = Listener()
    events = [
        PhaseStarted(name="cold start", total=1),
        SupervisedStep(report=report(1)),
        evaluated(0, 0.25),
        PhaseStarted(name="learning"),
        *stepped(1),
        GeneratorsMeasured(busy_s=2.0, num_sampled_tokens=3),
        ControlEvaluated(num_steps=7, metrics={"success": 0.5}),
        RunFinished(),
    ]
    with opened(run, watcher=listener) as log:
        for event in events:
            log.emit(event)
        assert steps_on_disk(run) == [1], "a row is on disk when its step has ended"
    written = list(journal.read(run.journal))
    assert isinstance(written[0], RunStarted)
    assert (written[0].run, written[0].resumed) == ("run", 0)
    assert [codec.encode(msgspec.structs.replace(e, t=0.0)) for e in written[1:]] == [codec.encode(e) for e in events]
    assert [event.t for event in written] == sorted(event.t for event in written)
    assert listener.told == [
        ("resumed", ([], [])),
        ("phase", ("cold start", 1)),
        ("sft", 1),
        ("evaluated", 0),
        ("phase", ("learning", None)),
        ("step", 1),
        ("control", 7),
    ]


def test_the_next_process_knows_what_the_ones_before_came_to(run: RunDir) -> None:
    with opened(run) as log:
        for event in (
            PhaseStarted(name="cold start"),
            SupervisedStep(report=report(1)),
            evaluated(0, 0.25),
            PhaseStarted(name="learning"),
            *stepped(1),
            *stepped(2),
            evaluated(2, 0.75),
            ControlEvaluated(num_steps=7, metrics={"success": 0.5}),
        ):
            log.emit(event)
        before, ended = log.summary(status="interrupted"), log.now
    listener = Listener()
    with opened(run, watcher=listener) as log:
        assert listener.told == [("resumed", ([1, 2], [0, 2]))], "what was told before is not told again"
        assert log.now >= ended, "the clock of the run goes on"
        assert (log.num_steps, log.state.step, log.state.num_starts) == (2, 2, 1)
        assert [event.metrics["success"] for event in log.evaluations] == [0.25, 0.75]
        assert log.control is not None
        assert log.control.num_steps == 7
        assert [phase.name for phase in log.phases.phases] == ["cold start", "learning"]
        assert [len(phase.reports) for phase in log.phases.phases] == [1, 0]
        for event in stepped(3):
            log.emit(event)
        after = log.summary(status="finished")
    assert (before.status, before.steps, before.train_s) == ("interrupted", 2, 1.0)
    assert (after.status, after.steps, after.train_s) == ("finished", 3, 1.5)
    assert (after.success_before, after.success_after, after.success_control) == (0.25, 0.75, 0.5)
    assert after.wall_s >= before.wall_s
    assert steps_on_disk(run) == [1, 2, 3]
    starts = [event for event in journal.read(run.journal) if isinstance(event, RunStarted)]
    assert [event.resumed for event in starts] == [0, 1]


def test_the_clock_of_a_run_stands_still_while_no_process_works_on_it(run: RunDir) -> None:
    with journal.Journal(run.journal) as before:
        before.append(RunStarted(t=0.0, run="run", config_digest="d"))
        before.append(PhaseStarted(t=1000.0, name="cold start"))
    with opened(run) as log:
        log.emit(PhaseStarted(name="learning"))
        assert 1000.0 <= log.now < 2000.0
    written = list(journal.read(run.journal))
    assert all(1000.0 <= event.t < 2000.0 for event in written[2:])
    assert log.phases.wall_s("cold start") == 0.0


def test_rows_that_disagree_with_the_journal_are_written_anew(run: RunDir) -> None:
    with opened(run) as log:
        for event in (*stepped(1), *stepped(2)):
            log.emit(event)
    good = run.metrics.read_bytes()
    run.metrics.write_bytes(good[:-20])  # as a crash may leave it
    with opened(run):
        assert run.metrics.read_bytes() == good


def test_a_run_that_was_measured_once_has_no_success_after_it(run: RunDir) -> None:
    with opened(run) as log:
        nothing = log.summary(status="failed", error="it broke")
        log.emit(evaluated(0, 0.25))
        once = log.summary(status="failed")
    assert (nothing.success_before, nothing.success_after, nothing.success_control) == (None, None, None)
    assert (nothing.error, nothing.status) == ("it broke", "failed")
    assert (once.success_before, once.success_after) == (0.25, None)


def test_the_newest_checkpoints_are_kept_and_older_ones_removed(run: RunDir) -> None:
    with opened(run) as log:
        for step in (9, 10, 11):
            save(run, log, step)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000010", "step-000011"]


def test_a_checkpoint_is_kept_though_there_are_folders_of_later_steps(run: RunDir) -> None:
    """The journal was cut back to step 3, and the run has not come to them yet."""
    for step in (15, 20):
        (run.checkpoints / f"step-{step:06d}").mkdir(parents=True)
    with opened(run) as log:
        save(run, log, 5)
        save(run, log, 10)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000005", "step-000010"]


def save(run: RunDir, log: RunLog, step: int) -> None:
    folder = run.checkpoints / f"step-{step:06d}"
    folder.mkdir(parents=True)
    log.emit(Checkpointed(step=step, version=step, path=str(folder)))


def test_reports_of_this_process_are_in_its_state(run: RunDir) -> None:
    """A controller that trains a step again behind a checkpoint emits no second report for it."""
    with opened(run) as log:
        for event in stepped(1):
            log.emit(event)
        assert log.state.reports == {1: report(1)}
    with opened(run) as log:
        assert log.state.reports == {1: report(1)}
