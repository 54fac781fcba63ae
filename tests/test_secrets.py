"""Secrets stay out of everything that is written: configurations, journals, summaries, reports; and out of reprs."""

from pathlib import Path

import msgspec
import pytest

from actors.config import Config, HfModel
from actors.report.report import write_report
from actors.run_dir import RunDir, choose
from actors.run_log import RunLog
from actors.watcher import Watcher
from engine.config import differences, digest
from engine.dataset import DataConfig
from engine.inference.sglang_config import SglangConfig
from engine.secrets import HIDDEN, redacted

SECRET = "xyzzy-plugh-4711"


def configured(api_key: str | None) -> Config:
    return Config(
        model=HfModel(path="model"), data=DataConfig(path="data.parquet"), generator=SglangConfig(api_key=api_key)
    )


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path) -> None:
    config, run = configured(SECRET), RunDir(tmp_path / "run")
    run.path.mkdir()
    run.write_config(config)
    with RunLog(config, run, watcher=Watcher()) as log:
        run.write_summary(log.summary(status="failed", error="it broke"))
    write_report(run, text=lambda tokens: "")
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert {"config.json", "000001.log", "summary.json", "report.html"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert HIDDEN in (run.path / "config.json").read_text()


def test_a_repr_knows_no_secret() -> None:
    assert SECRET not in repr(configured(SECRET))
    assert "api_key='(hidden)'" in repr(configured(SECRET))
    assert "api_key=None" in repr(configured(None))


def test_another_secret_is_the_same_run_and_none_is_another(tmp_path: Path) -> None:
    one, other = configured(SECRET), configured("another")
    assert differences(one, other) == []
    assert digest(one) == digest(other)
    assert differences(one, configured(None)) == ["generator.api_key"]
    run = msgspec.structs.replace(one.run, dir=str(tmp_path), name="run")
    one, other = msgspec.structs.replace(one, run=run), msgspec.structs.replace(other, run=run)
    (tmp_path / "run").mkdir()
    RunDir(tmp_path / "run").write_config(one)
    assert choose(other, stem="x", fresh=False).path == tmp_path / "run", "a key that was rotated goes on"


def test_what_holds_no_secret_is_left_as_it_is() -> None:
    config = configured(None)
    assert redacted(config) is config
    hidden = redacted(configured(SECRET))
    assert isinstance(hidden.generator, SglangConfig)
    assert hidden.generator.api_key == HIDDEN


@pytest.mark.parametrize("name", ["api_key", "password", "secret", "token"])
def test_secrets_are_known_by_the_names_of_their_keys(name: str) -> None:
    section = msgspec.defstruct("Deep", [(name, str), ("url", str)], frozen=True)
    outer = msgspec.defstruct("Outer", [("sections", tuple)], frozen=True)
    assert SECRET not in repr(redacted(outer((section(SECRET, "u"), section(SECRET, "v")))))
