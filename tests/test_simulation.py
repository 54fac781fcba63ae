"""Thousands of seeded schedules of the control plane: each ends in batches, drops with a reason, or typed errors."""

import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.control_world import words
from tests.schedules import Outcome, play_many

NUM_QUICK = 200
NUM_REAL = 5000
LIMIT_S = 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    words(folder)
    return folder


def check(ends: Counter[str], bad: list[Outcome], *, num: int) -> None:
    assert not bad, f"{len(bad)} of {num}, for example {bad[0]}"
    assert ends["finished"] == num, "the last life of a schedule has nobody who kills it"
    assert ends["killed"] > num / 4
    assert ends["LearnerError"] > num / 20


def test_schedules_keep_every_invariant(folder: Path) -> None:
    ends, bad = play_many(range(NUM_QUICK), str(folder))
    check(ends, bad, num=NUM_QUICK)


@pytest.mark.real
@pytest.mark.timeout(2 * LIMIT_S)
def test_thousands_of_schedules_keep_every_invariant_within_minutes(folder: Path) -> None:
    started = time.monotonic()
    shares = [range(start, NUM_REAL, 40) for start in range(40)]
    ends: Counter[str] = Counter()
    bad: list[Outcome] = []
    # Not forked: this process has threads by now.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for some_ends, some_bad in pool.map(play_many, shares, [str(folder)] * len(shares)):
            ends += some_ends
            bad += some_bad
    check(ends, bad, num=NUM_REAL)
    assert time.monotonic() - started < LIMIT_S
