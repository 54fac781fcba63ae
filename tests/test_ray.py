"""The engine on a real Ray cluster of two nodes on this machine: the same decisions as on one, deaths survived, jobs.

The nodes are processes of this test; every wait has a deadline, and they end with it.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine import journal
from engine.events import BatchTaken, ForkConsidered, Forked, GroupFinished, PromptAdmitted, TokensSampled
from engine.ports import free_port
from engine.run_state import RunState
from engine.types import TrajectoryGroup
from tests.test_resume import CONFIG, STEPS, Place, check_finished

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


class RayNodes:
    """A head with a dashboard, and another node."""

    def __init__(self, folder: Path) -> None:
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.dashboard_url = f"http://127.0.0.1:{self.dashboard}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "ray.log").open("wb")
        shared = ["--block", "--num-cpus", "3", "--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
        # Ray's sockets have paths of at most 107 characters, which pytest's folders are too long for.
        head = [f"--port={self.port}", f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1"]
        self._start(["--head", *head, *shared])
        self._wait_for(self.dashboard)
        self._start([f"--address={self.address}", *shared])

    def _start(self, arguments: list[str]) -> None:
        # Not the default one: another cluster on this machine may have it, and then no job is ever taken.
        command = [RAY, "start", f"--dashboard-agent-listen-port={free_port()}", *arguments]
        process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=ENVIRONMENT, start_new_session=True)
        self.processes.append(process)

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 60
        while port not in {c.laddr.port for c in psutil.net_connections() if c.status == psutil.CONN_LISTEN}:
            assert time.monotonic() < deadline, "the head node did not come up"
            assert self.processes[0].poll() is None
            self.processes[0].poll()

    def stop(self) -> None:
        everything = [p for one in self.processes for p in [*psutil.Process(one.pid).children(recursive=True)]]
        for one in self.processes:
            one.terminate()
        for one in self.processes:
            one.wait(timeout=30)
        for process in psutil.wait_procs(everything, timeout=10)[1]:
            process.kill()
        self._log.close()

    def kill_one(self, role: str) -> None:
        """End the process of an actor, as a machine that loses power would."""
        ours = [p for one in self.processes for p in psutil.Process(one.pid).children(recursive=True)]
        next(p for p in ours if f"ray::{role}" in " ".join(p.cmdline())).kill()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    nodes = RayNodes(tmp_path_factory.mktemp("ray"))
    try:
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("runs"))


def on(nodes: RayNodes, **settings: object) -> list[str]:
    """Overrides for a run on these nodes."""
    chosen = {"address": nodes.address, "num_rollout_actors": 2, "num_tool_workers": 1, **settings}
    return [
        "runtime.backend=ray",
        "runtime.num_generators=2",
        *(f"runtime.ray.{key}={value}" for key, value in chosen.items()),
    ]


def groups(place: Place, name: str) -> dict[str, TrajectoryGroup]:
    """Every finished group of a run."""
    state = RunState()
    found: dict[str, TrajectoryGroup] = {}
    for event in journal.read(place.path / "runs" / name / "journal"):
        state.apply(event)
        if isinstance(event, GroupFinished):
            found[event.prompt_id] = state.groups[event.prompt_id]
    return found


def test_a_deterministic_run_decides_the_same_on_one_machine_and_on_a_cluster(nodes: RayNodes, place: Place) -> None:
    same = ["train.deterministic=true", "generator.deterministic=true", "train.steps=4", "train.eval_every="]
    place.finish("here", *same)
    place.finish("there", *same, *on(nodes))
    here, there = place.events("here"), place.events("there")
    assert [e.prompt_ids for e in here if isinstance(e, BatchTaken)] == [
        e.prompt_ids for e in there if isinstance(e, BatchTaken)
    ]
    ours, theirs = groups(place, "here"), groups(place, "there")
    assert set(ours) == set(theirs)
    assert sum(group.num_forks for group in ours.values()) > 0
    for name, group in ours.items():
        other = theirs[name]
        assert [(t.leaf, t.forked_from, t.reward) for t in group.trajectories] == [
            (t.leaf, t.forked_from, t.reward) for t in other.trajectories
        ]
        for node, twin in zip(group.tree.nodes, other.tree.nodes, strict=True):
            assert node.token_ids.tolist() == twin.token_ids.tolist()
            assert node.logprobs.tobytes() == twin.logprobs.tobytes()
            assert node.versions.tolist() == twin.versions.tolist()
    considered = [
        Counter((e.prompt_id, e.path, e.length, e.coin, e.is_wanted) for e in events if isinstance(e, ForkConsidered))
        for events in (here, there)
    ]
    assert considered[0] == considered[1]
    assert {(e.prompt_id, e.path, e.child) for e in here if isinstance(e, Forked)} == {
        (e.prompt_id, e.path, e.child) for e in there if isinstance(e, Forked)
    }
    assert all(e.t > 0 for e in there if isinstance(e, TokensSampled))


def test_a_run_survives_the_deaths_of_a_rollout_actor_and_of_a_generator(nodes: RayNodes, place: Place) -> None:
    process = place.start("deaths", *on(nodes))
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if f" 4/{STEPS}" in line:
                nodes.kill_one("RolloutActor")
            if f" 7/{STEPS}" in line:
                nodes.kill_one("GeneratorActor")
        assert process.wait(timeout=60) == 0, "".join(said[-20:])
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    text = "".join(said)
    assert re.search(r"rollout-\d is lost", text)
    assert re.search(r"generator-\d is lost", text)
    assert "is grown on elsewhere" in text
    check_finished(place, "deaths", starts=1)


def test_the_only_generator_may_die_while_nobody_updates_it(nodes: RayNodes, place: Place) -> None:
    """Rollout actors wait for it, and the controller for them: nobody but its watch asks after it."""
    process = place.start("alone", *on(nodes), "runtime.num_generators=1", "train.eval_every=")
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if ": reinforcement learning" in line:  # before there is a batch, and so an update
                nodes.kill_one("GeneratorActor")
        assert process.wait(timeout=60) == 0, "".join(said[-20:])
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    assert "generator-0 is lost" in "".join(said)


def test_a_job_ends_as_its_run_does(nodes: RayNodes, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True, timeout=60)
    (checkout / "tiny.toml").write_text(CONFIG + "steps = 2\n")
    runs = tmp_path / "runs"
    job = ["submit", "tiny.toml", *on(nodes)[1:], f"run.dir={runs}", "run.name=job", "runtime.ray.address="]
    finished = arpo(checkout, *job, "--address", nodes.dashboard_url, "--python", sys.executable)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "reinforcement learning 2/2" in finished.stdout
    assert json.loads((runs / "job" / "summary.json").read_text())["status"] == "finished"
    admitted = [e for e in journal.read(runs / "job" / "journal") if isinstance(e, PromptAdmitted)]
    assert admitted

    refused = [*job, "run.name=refused", "data.path=/nowhere.parquet"]
    failed = arpo(checkout, *refused, "--address", nodes.dashboard_url, "--python", sys.executable)
    assert failed.returncode == 2, "the exit code is the run's own"
    assert "/nowhere.parquet" in failed.stdout


def test_a_cluster_that_is_too_small_or_not_there_is_one_line_and_exit_code_2(nodes: RayNodes, place: Place) -> None:
    small = place.finish("small", *on(nodes, connect_timeout_s=15, num_rollout_actors=40), code=2)
    assert "the Ray cluster has no room for 40 x {'CPU': 0.5}" in small.splitlines()[-1]
    nobody = place.finish("nobody", *on(nodes, address=f"127.0.0.1:{free_port()}"), code=2)
    assert nobody.count("\n") == 1
    assert "no Ray cluster at 127.0.0.1" in nobody
    budget = place.finish("budget", *on(nodes), "rollout.budget.calls_per_run=100", code=2)
    assert "a budget of the run needs all rollouts in one place - at $.rollout.budget.calls_per_run" in budget

    gone = arpo(place.path, "submit", "tiny.toml", "--address", f"http://127.0.0.1:{free_port()}")
    assert gone.returncode == 2
    assert gone.stderr.startswith("arpo: ")


def arpo(cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "actors.cli", *arguments]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(cwd if (cwd / "actors").exists() else ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
