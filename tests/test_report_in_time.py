"""The report of an interrupted run: written by a process of its own, or given up."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.config import Config, HfModel
from actors.report.__main__ import main
from actors.report.in_time import report_in_time
from actors.report.report import REPORT
from actors.run_dir import RunDir, Summary
from engine.dataset import DataConfig
from engine.errors import ConfigError
from engine.inference.tiny import make_tiny_model
from engine.tokenizer_tiny import make_word_tokenizer
from tests.test_report_page import run_dir, whole_run


@pytest.fixture
def interrupted(tmp_path: Path, folder: Path) -> Iterator[RunDir]:
    make_word_tokenizer(folder, words=["who", "is", "it"])
    make_tiny_model(folder, vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)
    config = Config(model=HfModel(path=str(folder)), data=DataConfig(path="none.parquet"))
    run = run_dir(tmp_path, whole_run()[:-40], config=config)
    run.write_summary(Summary(status="interrupted", seed=0))
    yield run
    assert not list(run.path.glob(".*partial")), "whole or not at all"


def test_an_interrupted_run_has_a_report_of_what_there_is(interrupted: RunDir) -> None:
    assert asyncio.run(report_in_time(interrupted, patience_s=120.0))
    page = (interrupted.path / REPORT).read_text()
    assert "interrupted" in page
    assert "</html>" in page


def test_a_report_that_takes_too_long_is_given_up(interrupted: RunDir) -> None:
    assert not asyncio.run(report_in_time(interrupted, patience_s=0.0))
    assert not (interrupted.path / REPORT).exists()


def test_a_folder_without_a_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run lies there"):
        main(str(tmp_path))
