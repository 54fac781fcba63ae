"""Run folders: which one a command gets, and which one it may go on in."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import Config, HfModel, RunConfig
from actors.run_dir import RunDir, Summary, choose, write_whole
from engine.dataset import DataConfig
from engine.errors import ConfigError
from engine.train_config import TrainConfig


def config(base: Path, *, name: str | None = None, steps: int = 3) -> Config:
    return Config(
        run=RunConfig(name=name, dir=str(base)),
        model=HfModel(path="model"),
        data=DataConfig(path="data.parquet"),
        train=TrainConfig(steps=steps),
    )


def started(run: RunDir, settings: Config, *, status: str | None = None) -> RunDir:
    with run.locked():
        run.write_config(settings)
        if status is not None:
            run.write_summary(Summary(status=status, seed=0))  # type: ignore[arg-type]
    return run


def test_runs_without_a_name_are_numbered_and_choosing_makes_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path)
    first = choose(settings, stem="demo", fresh=False)
    assert first.path == tmp_path / "demo-1"
    assert list(tmp_path.iterdir()) == []
    started(first, settings, status="finished")
    assert choose(settings, stem="demo", fresh=False).path == tmp_path / "demo-2"
    assert choose(settings, stem="other", fresh=False).path == tmp_path / "other-1"


@given(numbers=st.sets(st.integers(1, 120), max_size=6))
def test_the_next_number_is_behind_all_others(tmp_path_factory: pytest.TempPathFactory, numbers: set[int]) -> None:
    base = tmp_path_factory.mktemp("runs")
    for name in (*(f"demo-{number}" for number in numbers), "demo-x", "demo-12-sft", "demo", "a-demo-500"):
        (base / name).mkdir()
    chosen = choose(config(base), stem="demo", fresh=False)
    assert chosen.path == base / f"demo-{max(numbers, default=0) + 1}"


@pytest.mark.parametrize("status", [None, "interrupted", "failed"])
def test_the_latest_unfinished_run_goes_on_with_the_same_configuration_and_only_then(
    tmp_path: Path, status: str | None
) -> None:
    settings = config(tmp_path)
    started(RunDir(tmp_path / "demo-1"), settings, status="finished")
    started(RunDir(tmp_path / "demo-2"), settings, status=status)
    assert choose(settings, stem="demo", fresh=False).path == tmp_path / "demo-2"
    assert choose(settings, stem="demo", fresh=True).path == tmp_path / "demo-3"
    assert choose(config(tmp_path, steps=4), stem="demo", fresh=False).path == tmp_path / "demo-3"


def test_a_named_run_that_is_unfinished_and_differs_is_refused_with_the_keys(tmp_path: Path) -> None:
    settings = config(tmp_path, name="mine")
    run = choose(settings, stem="demo", fresh=False)
    assert run.path == tmp_path / "mine"
    started(run, settings, status="interrupted")
    assert choose(settings, stem="demo", fresh=False).path == run.path
    changed = config(tmp_path, name="mine", steps=4)
    with pytest.raises(ConfigError, match=r"mine: an unfinished run with another configuration \(train.steps\)"):
        choose(changed, stem="demo", fresh=False)
    assert choose(changed, stem="demo", fresh=True).path == run.path
    started(run, settings, status="finished")
    assert choose(changed, stem="demo", fresh=False).is_finished, "the caller leaves a finished one alone"


def test_two_processes_never_work_on_one_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "mine")
    with run.locked(), pytest.raises(ConfigError, match="another process works on this run"), run.locked():
        pass
    with run.locked():
        pass


def test_clearing_leaves_nothing_but_the_lock(tmp_path: Path) -> None:
    run = started(RunDir(tmp_path / "mine"), config(tmp_path), status="failed")
    (run.journal / "deep").mkdir(parents=True)
    with run.locked():
        run.clear()
        assert [path.name for path in run.path.iterdir()] == [".lock"]
        with pytest.raises(ConfigError, match="another process"), RunDir(run.path).locked():
            pass


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = RunDir(tmp_path / "file" / "mine")
    with pytest.raises(ConfigError, match=r"file/mine: Not a directory - at \$.run.dir"), run.locked():
        pass
    with pytest.raises(ConfigError, match="Not a directory"):
        assert run.config


def test_a_torn_summary_is_none_and_a_torn_configuration_is_named(tmp_path: Path) -> None:
    run = started(RunDir(tmp_path / "mine"), config(tmp_path), status="finished")
    assert run.is_finished
    assert run.config == config(tmp_path)
    (run.path / "summary.json").write_text('{"status": "fin')
    assert run.summary is None
    assert not run.is_finished
    (run.path / "config.json").write_text('{"run": ')
    with pytest.raises(ConfigError, match=r"config.json: Input data was truncated"):
        assert run.config
    (run.path / "config.json").write_text('{"run": {"nmae": 1}}')
    with pytest.raises(ConfigError, match=r"config.json: Object contains unknown field `nmae` - at `\$.run`"):
        assert run.config


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_bytes() == b"two"


def test_a_summary_says_null_where_nothing_was_measured() -> None:
    plain = msgspec.json.decode(msgspec.json.encode(Summary(status="failed", seed=3)))
    assert plain["success_before"] is None
    assert plain["success_after"] is None
