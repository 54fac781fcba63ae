"""Interrupted runs: killed in the middle, the same command goes on, and nothing is lost, repeated or left running."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from actors.cli import main
from engine import journal
from engine.events import (
    AnyEvent,
    BatchTaken,
    Checkpointed,
    ControlEvaluated,
    Evaluated,
    PhaseStarted,
    PromptAdmitted,
    RunFinished,
    RunStarted,
    StepFinished,
    SupervisedStep,
    ToolFinished,
)
from engine.run_state import RunState

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

STEPS = 12
CONFIG = """
[world]
num_sft = 200
num_drills = 100
num_train = 120
num_valid = 8
num_test = 8
hops = [1.0]
crowded = 0.0
[model]
kind = "tiny"
tokenizer = "words"
hidden_size = 32
num_layers = 1
num_heads = 2
num_kv_heads = 1
head_dim = 16
intermediate_size = 64
rope_theta = 500.0
tie = false
embedding_std = 0.15
qk_norm = 2.0
max_positions = 1024
[data]
path = "world:train"
epochs = 4
[eval]
concurrency = 8
[eval.data]
path = "world:valid"
[tools.python]
[tools.search]
corpus = "world:corpus"
top_k = 1
[[sft]]
traces = ["world:drills"]
steps = 20
batch_size = 16
[sft.learner]
lr = 1e-2
dtype = "float32"
[sft.learner.loss]
kind = "nll"
[[sft]]
traces = ["world:sft"]
steps = 80
batch_size = 16
[sft.learner]
lr = 1e-2
dtype = "float32"
[sft.learner.loss]
kind = "nll"
[rollout]
size = 4
[rollout.branching]
kind = "arpo"
initial = 2
probe_tokens = 4
[rollout.sampling]
max_response_tokens = 96
max_segment_tokens = 32
[generator]
kind = "embedded"
max_kv_tokens = 16384
[learner]
lr = 1e-4
dtype = "float32"
[train]
batch_size = 2
checkpoint_every = 4
eval_every = 6
"""


class Place:
    """A folder in which commands are started; worlds and models made there are made once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_words = ""
        """What the process that was interrupted last said after that."""
        (path / "tiny.toml").write_text(CONFIG + f"steps = {STEPS}\n")

    def start(self, name: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "actors.cli", "train", "tiny.toml", f"run.name={name}", *arguments]
        root = str(Path(__file__).resolve().parent.parent)
        # Files in progress are shared with no terminal: plain lines, one a step.
        return subprocess.Popen(
            command, cwd=self.path, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE, text=True
        )

    def finish(self, name: str, *arguments: str, code: int = 0) -> str:
        """Run a command to its end; returns what it said."""
        with self.start(name, *arguments) as process:
            try:
                _, said = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == code, said
        return said

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run any command to its end; returns what it said on both channels."""
        root = str(Path(__file__).resolve().parent.parent)
        command = [sys.executable, "-m", "actors.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def interrupt(self, name: str, *arguments: str, at: str, by: signal.Signals) -> tuple[int, list[psutil.Process]]:
        """Send a signal when a line has `at` in it; returns the exit code, and the children there were."""
        process = self.start(name, *arguments)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if at in line:
                    break
            else:
                raise AssertionError(f"no line with {at!r}")
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(by)
            self.last_words = process.stderr.read()
            return process.wait(timeout=60), children
        finally:
            process.kill()
            process.stderr.close()
            process.wait()

    def summary(self, name: str) -> dict[str, object]:
        return json.loads((self.path / "runs" / name / "summary.json").read_text())

    def events(self, name: str) -> list[AnyEvent]:
        return list(journal.read(self.path / "runs" / name / "journal"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("resume"))
    place.finish("base")
    return place


def gone(children: list[psutil.Process]) -> bool:
    return psutil.wait_procs(children, timeout=30)[1] == []


def check_finished(place: Place, name: str, *, starts: int, checkpoints: Sequence[int] = (4, 8, 12)) -> None:
    """The run is whole: every step once, every prompt once, every call once."""
    events = place.events(name)
    state = RunState()
    for event in events:
        state.apply(event)
    assert state.is_finished
    assert isinstance(events[-1], RunFinished)
    assert sum(isinstance(e, RunStarted) for e in events) == starts

    admitted = [e.prompt_id for e in events if isinstance(e, PromptAdmitted)]
    assert len(set(admitted)) == len(admitted)
    taken = [e for e in events if isinstance(e, BatchTaken)]
    assert [e.step for e in taken] == list(range(1, STEPS + 1))
    trained = [prompt_id for e in taken for prompt_id in e.prompt_ids]
    assert len(set(trained)) == len(trained) == 2 * STEPS
    assert [e.report.step for e in events if isinstance(e, StepFinished)] == list(range(1, STEPS + 1))
    calls = Counter((e.prompt_id, e.path, e.index) for e in events if isinstance(e, ToolFinished))
    assert calls
    assert max(calls.values()) == 1, "a journaled call is not repeated"

    assert [e.step for e in events if isinstance(e, Evaluated)] == [0, 6, 12]
    assert [e.step for e in events if isinstance(e, Checkpointed)] == list(checkpoints)
    run = place.path / "runs" / name
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000008", "step-000012"]
    assert (run / "hf" / "model.safetensors").exists()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["staleness"] <= 1 for row in rows)
    assert all(later["t"] > earlier["t"] for earlier, later in pairwise(rows))
    summary = place.summary(name)
    assert (summary["status"], summary["steps"]) == ("finished", STEPS)
    assert summary["success_after"] is not None
    assert summary["num_tool_calls_executed"] == sum(
        e.result.was_executed for e in events if isinstance(e, ToolFinished)
    )


def test_a_run_comes_to_its_end_and_a_finished_one_is_not_touched(place: Place) -> None:
    check_finished(place, "base", starts=1)
    run = place.path / "runs" / "base"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert "is finished already" in place.finish("base")
    assert "is finished already" in place.finish("base", "train.batch_size=3")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_ctrl_c_is_resumable_and_the_same_command_goes_on(place: Place) -> None:
    code, children = place.interrupt("polite", at=f" 5/{STEPS}", by=signal.SIGINT)
    assert code == 75
    assert ": report" in place.last_words, "which is given up where the machine is too busy for it"
    assert len(children) >= 2
    assert gone(children)
    assert place.summary("polite")["status"] == "interrupted"
    done = [e.step for e in place.events("polite") if isinstance(e, BatchTaken)]
    assert 5 <= max(done) < STEPS, "it was interrupted in the middle"

    refused = place.finish("polite", "train.batch_size=3", "learner.lr=1e-5", code=2)
    assert "an unfinished run with another configuration (learner.lr, train.batch_size)" in refused
    assert refused.count("\n") == 1
    place.finish("polite")
    check_finished(place, "polite", starts=2)


def test_kill_9_leaves_no_child_and_the_same_command_goes_on(place: Place) -> None:
    code, children = place.interrupt("shot", at=f" 6/{STEPS}", by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert len(children) >= 2
    assert gone(children), "children end by themselves when their parent is gone"
    assert not (place.path / "runs" / "shot" / "summary.json").exists()
    place.finish("shot")
    check_finished(place, "shot", starts=2)


def test_where_the_newest_checkpoint_is_torn_the_one_before_it_is_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code, children = place.interrupt("torn", at=f" 10/{STEPS}", by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert gone(children)
    checkpoints = place.path / "runs" / "torn" / "checkpoints"
    tear(checkpoints / "step-000008")
    assert "step-000008" in place.finish("torn")
    check_finished(place, "torn", starts=2, checkpoints=(4, 8, 8, 12))

    tear(checkpoints / "step-000012")
    monkeypatch.chdir(place.path)
    assert main(["export", "runs/torn", "--hf", "exported"]) == 0
    assert "step-000012" in caplog.text
    assert (place.path / "exported" / "model.safetensors").exists()
    tear(checkpoints / "step-000008")
    assert main(["export", "runs/torn", "--hf", "exported"]) == 2, "none is whole"


def tear(checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])


def test_an_interruption_while_processes_start_leaves_none_of_them(place: Place) -> None:
    code, _ = place.interrupt("early", at=": start", by=signal.SIGTERM)
    assert code == 75
    assert place.summary("early")["status"] == "interrupted"
    assert not [p for p in psutil.process_iter(["cwd", "cmdline"]) if _is_ours(p, place.path)]


def test_the_cold_start_is_made_once_and_every_run_knows_its_steps(place: Place) -> None:
    made = {path.name for path in (place.path / "runs" / "made").glob("sft-*")}
    place.finish("second", "train.steps=2")
    assert {path.name for path in (place.path / "runs" / "made").glob("sft-*")} == made
    for name, earlier in (("base", ""), ("second", ", made earlier")):
        events = place.events(name)
        phases = [event.name for event in events if isinstance(event, PhaseStarted)]
        assert phases[:3] == [f"cold start 1 of 2{earlier}", f"cold start 2 of 2{earlier}", "start"]
        steps = [event.report for event in events if isinstance(event, SupervisedStep)]
        assert [report.step for report in steps] == [*range(1, 21), *range(1, 81)]
        assert steps[-1].loss < steps[20].loss


def test_a_control_follows_the_run_and_is_begun_anew_where_it_was_interrupted(place: Place) -> None:
    code, children = place.interrupt("compared", "eval.control=true", at=": control", by=signal.SIGINT)
    assert code == 75
    assert gone(children)
    before = place.summary("compared")
    assert (before["status"], before["steps"], before["success_control"]) == ("interrupted", STEPS, None)
    place.finish("compared", "eval.control=true")

    events = place.events("compared")
    (control,) = (event for event in events if isinstance(event, ControlEvaluated))
    assert events[-1] is control
    after = place.summary("compared")
    assert (after["status"], after["steps"]) == ("finished", STEPS)
    assert after["success_control"] == control.metrics["success"]
    assert [e.report.step for e in events if isinstance(e, StepFinished)] == list(range(1, STEPS + 1))
    assert [e.step for e in events if isinstance(e, Evaluated)] == [0, 6, 12]
    begun = [event for event in events if isinstance(event, PhaseStarted) and event.name == "control"]
    assert len(begun) == 2
    steps = [e.report.step for e in events[events.index(begun[-1]) :] if isinstance(e, SupervisedStep)]
    assert steps == list(range(1, control.num_steps + 1))
    assert begun[-1].total == control.num_steps
    run = place.path / "runs" / "compared"
    assert (run / "control" / "model.safetensors").read_bytes() != (run / "hf" / "model.safetensors").read_bytes()


def test_validation_questions_are_asked_beside_the_test_set_and_choose_the_best_weights(place: Place) -> None:
    place.finish("validated", "eval.validation.path=world:test", "train.eval_every=6")
    events = place.events("validated")
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert [event.step for event in evaluations] == [0, 6, 12]
    assert all({"success", "validation_success"} <= set(event.metrics) for event in evaluations)
    asked = [event.total for event in events if isinstance(event, PhaseStarted) and event.name == "evaluation"]
    assert asked == [16, 16, 16]
    assert place.summary("validated")["success_after"] == evaluations[-1].metrics["success"]
    assert (place.path / "runs" / "validated" / "best" / "model.safetensors").is_file()


def test_fresh_starts_an_unfinished_run_anew(place: Place) -> None:
    place.interrupt("again", at=f" 2/{STEPS}", by=signal.SIGINT)
    place.finish("again", "--fresh", "run.seed=1", "sft.1.steps=79", "train.eval_every=6")
    check_finished(place, "again", starts=1)
    assert place.summary("again")["seed"] == 1


def _is_ours(process: psutil.Process, folder: Path) -> bool:
    return process.info["cwd"] == str(folder) and "actors.host" in " ".join(process.info["cmdline"] or ())
