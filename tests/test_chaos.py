"""Random `kill -9` of any process of a real run: what it comes to is whole, and nothing in it happened twice.

pytest tests/test_chaos.py --kills 100 --chaos-seed 7
"""

import os
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path

import psutil
import pytest

from engine.events import (
    AnyEvent,
    BatchTaken,
    PathEnded,
    PromptAdmitted,
    Rewarded,
    RunFinished,
    RunStarted,
    StepFinished,
    ToolFinished,
    ToolRequested,
    ToolRerun,
)
from engine.run_state import RunState
from tests.test_resume import Place

pytestmark = [pytest.mark.real]

STEPS = 40
SIZE = 4
LONGEST_S = 2.5
"""From the beginning of training, or the kill before, to the next one."""
OPTIONS = (f"train.steps={STEPS}", "train.checkpoint_every=3", "eval=", "train.eval_every=")


class Victim:
    """A process of a run, by what it does there."""

    def __init__(self, process: psutil.Process, role: str) -> None:
        self.process = process
        self.role = role

    @property
    def ends_the_run(self) -> bool:
        """The others are started again while the run goes on."""
        return self.role in ("controller", "learner")


def victims(controller: int) -> list[Victim]:
    found = [Victim(psutil.Process(controller), "controller")]
    for child in found[0].process.children(recursive=True):
        try:
            words, log = " ".join(child.cmdline()), Path(os.readlink(f"/proc/{child.pid}/fd/1")).stem
        except (psutil.Error, OSError):
            continue  # it ended meanwhile
        if "actors.host" in words:
            found.append(Victim(child, log.partition("-")[0]))
        elif "python_server" in words:
            found.append(Victim(child, "tools"))
    return found


def attack(place: Place, name: str, *, kills: int, dice: random.Random) -> Counter[str]:
    """Start the run, and go on starting it, killing on the way; returns who was killed. Ends with the run."""
    killed: Counter[str] = Counter()
    while True:
        process = place.start(name, *OPTIONS)
        assert process.stderr is not None
        try:
            if killed.total() < kills and any("reinforcement learning" in line for line in process.stderr):
                strike(process, kills=kills, dice=dice, killed=killed)
            _, said = process.communicate(timeout=240)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            return killed
        assert process.returncode in (1, -signal.SIGKILL), said


def strike(process: "subprocess.Popen[str]", *, kills: int, dice: random.Random, killed: Counter[str]) -> None:
    """Kill one process of a run after a while, again and again, until that ends the run or there were enough."""
    while killed.total() < kills:
        try:
            process.wait(dice.uniform(0.0, LONGEST_S))
            return
        except subprocess.TimeoutExpired:
            pass
        there = victims(process.pid)
        role = dice.choice(sorted({victim.role for victim in there}))
        victim = dice.choice([one for one in there if one.role == role])
        try:
            victim.process.kill()
        except psutil.NoSuchProcess:
            continue
        killed[role] += 1
        if victim.ends_the_run:
            return


def check(events: list[AnyEvent]) -> None:
    """Each prompt is trained once, groups are whole, no call is repeated that the journal knows the result of."""
    state = RunState()
    for event in events:
        state.apply(event)
        if isinstance(event, BatchTaken):
            for group in state.batches[event.step]:
                assert len(group.trajectories) == SIZE
    assert state.is_finished
    assert isinstance(events[-1], RunFinished)
    admitted = [e.prompt_id for e in events if isinstance(e, PromptAdmitted)]
    assert len(set(admitted)) == len(admitted)
    taken = [e for e in events if isinstance(e, BatchTaken)]
    assert [e.step for e in taken] == list(range(1, STEPS + 1))
    trained = Counter(name for e in taken for name in e.prompt_ids)
    assert set(trained.values()) == {1}
    assert sorted(e.report.step for e in events if isinstance(e, StepFinished)) == list(range(1, STEPS + 1))
    for kind in (ToolRequested, ToolRerun, ToolFinished):
        calls = Counter((e.prompt_id, e.path, e.index) for e in events if isinstance(e, kind))
        assert max(calls.values(), default=1) == 1, kind
    for kind in (Rewarded, PathEnded):
        ends = Counter((e.prompt_id, e.path) for e in events if isinstance(e, kind) and e.prompt_id in trained)
        assert sum(ends.values()) >= len(trained) * SIZE


@pytest.mark.timeout(3600)
def test_kill_9_of_any_process_loses_nothing_and_repeats_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kills, seed = request.config.getoption("--kills"), request.config.getoption("--chaos-seed")
    dice = random.Random(seed)
    place = Place(tmp_path)
    killed: Counter[str] = Counter()
    number = 0
    while killed.total() < kills:
        name = f"chaos-{number}"
        killed += attack(place, name, kills=kills - killed.total(), dice=dice)
        events = place.events(name)
        check(events)
        number += 1
        print(f"{name}: {sum(isinstance(e, RunStarted) for e in events)} starts; killed so far: {dict(killed)}")
