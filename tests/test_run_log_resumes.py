"""A run's log opened again: from snapshots it knows what everything would have told, and says what is lost."""

import shutil
from pathlib import Path

import msgspec
import pytest

from actors.config import Config, HfModel
from actors.run_dir import RunDir
from actors.run_log import RunLog
from actors.watcher import Watcher
from engine import journal
from engine.dataset import DataConfig
from engine.errors import DataError, JournalError
from engine.events import AnyEvent, Checkpointed
from engine.journal import JournalConfig
from engine.run_state import RunState
from engine.tokenizer import HfTokenizer
from engine.train_config import TrainConfig
from tests.control_world import World, small, words
from tests.test_journal_tails import files_of_at_most


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def events(tokenizer: HfTokenizer) -> list[AnyEvent]:
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=1, eval_every=3)
    return World(tokenizer, train=train, rollout=small()).run().events[:-40]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


def opened(run: RunDir, retain: str = "archive") -> RunLog:
    config = Config(
        model=HfModel(path="model"), data=DataConfig(path="data.parquet"), journal=JournalConfig(retain=retain)
    )
    return RunLog(config, run, watcher=Watcher())


def fill(run: RunDir, events: list[AnyEvent], retain: str) -> None:
    with opened(run, retain) as log:
        for event in events:
            if isinstance(event, Checkpointed):
                folder = run.checkpoints / f"step-{event.step:06d}"
                folder.mkdir(parents=True, exist_ok=True)
                event = msgspec.structs.replace(event, path=str(folder))
            log.emit(event)


def whole(events: list[AnyEvent]) -> RunState:
    state = RunState()
    for event in events:
        state.apply(event)
    return state


@pytest.mark.parametrize("retain", ["archive", "checkpoint"])
def test_a_log_opened_at_a_snapshot_knows_what_all_events_would_have_told(
    run: RunDir, events: list[AnyEvent], retain: str
) -> None:
    fill(run, events, retain)
    with opened(run, retain) as log:
        before, rows = log.summary(status="interrupted"), run.metrics.read_bytes()
        state, expected = log.state, whole(events)
        assert [(c.step, c.version) for c in state.checkpoints] == [(4, 4), (5, 5)]
        assert sorted(state.batches) == sorted(expected.batches)
        assert (state.step, state.num_admitted, state.usage) == (
            expected.step,
            expected.num_admitted,
            expected.usage,
        )
        assert list(state.trees) == list(expected.trees)
        assert (len(log.evaluations), log.num_steps) == (1, expected.step)
        assert state.num_starts == 1
    assert [path.name for path in journal.segments(run.journal)] == ["000005.log", "000006.log", "000007.log"]
    archived = [path.name for path in journal.segments(run.journal / journal.ARCHIVE)]
    assert archived == ([f"00000{n}.log" for n in range(1, 5)] if retain == "archive" else [])
    again = RunDir(run.path)
    with opened(again, retain) as log:
        after = log.summary(status="interrupted")
        assert run.metrics.read_bytes() == rows, "rows before the snapshot are kept as they were"
        assert len(rows.splitlines()) == log.num_steps
    assert (after.steps, after.train_s, after.num_tool_calls_executed) == (
        before.steps,
        before.train_s,
        before.num_tool_calls_executed,
    )


def test_where_all_checkpoints_vanished_a_whole_journal_trains_everything_again(
    run: RunDir, events: list[AnyEvent]
) -> None:
    fill(run, events, "archive")
    shutil.rmtree(run.checkpoints)
    with opened(run) as log:
        assert log.state.checkpoints == ()
        assert sorted(log.state.batches) == list(range(1, log.state.step + 1))


def test_where_all_checkpoints_vanished_and_the_journal_too_it_is_said(run: RunDir, events: list[AnyEvent]) -> None:
    fill(run, events, "checkpoint")
    shutil.rmtree(run.checkpoints)
    with pytest.raises(DataError, match=r"no checkpoint is there any more; bring one back, or start anew with --fresh"):
        opened(run, "checkpoint").__enter__()


def test_where_the_newest_checkpoint_vanished_the_one_before_it_counts(run: RunDir, events: list[AnyEvent]) -> None:
    fill(run, events, "checkpoint")
    shutil.rmtree(run.checkpoints / "step-000005")
    with opened(run, "checkpoint") as log:
        assert [one.step for one in log.state.checkpoints] == [4]
        assert sorted(log.state.batches) == [5], "trained again, from the one before"


def test_a_damaged_journal_goes_back_and_the_run_can_go_on(
    run: RunDir, events: list[AnyEvent], caplog: pytest.LogCaptureFixture
) -> None:
    fill(run, events, "archive")
    path = journal.segments(run.journal)[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with opened(run) as log:
        good = log.state
    assert "the run goes back to the event before it" in caplog.text
    assert (good.step, good.version) == (5, 5)
    assert len(list(journal.read(run.journal))) < len(events) + 2


def test_a_full_disk_is_a_journal_error(run: RunDir, events: list[AnyEvent]) -> None:
    with pytest.raises(JournalError, match=r"000001\.log: (.*large|wrote)"), files_of_at_most(20_000):
        fill(run, events, "archive")
    with opened(run) as log:
        assert log.state.num_admitted > 0, "what was written before it is whole"
