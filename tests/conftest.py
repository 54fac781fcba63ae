"""What holds for every test: one thread per process, and property tests that draw the same examples each time."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read when torch is first imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=8, help="processes that test_chaos kills (default 8)")
    parser.addoption("--chaos-seed", type=int, default=0, help="which ones, and when")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test makes its model."""
    return tmp_path / "model"


@pytest.fixture
def open_learner(tmp_path: Path, folder: Path) -> Iterator[Any]:
    """Starts learners on `folder`, one at a time; the last one is closed at the end."""
    from tests.learner_models import learners  # loads Megatron and transformers

    with learners(folder, weights_root=tmp_path) as start:
        yield start
