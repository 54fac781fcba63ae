"""Agents on the official client teach the policy that answers them: `examples/online_training.py`, in short."""

import asyncio
from pathlib import Path

import pytest

from actors import Config
from actors.bench.overlap import CONFIG
from actors.materials import materialise
from engine import journal
from engine.events import AnyEvent, StepFinished, TokensSampled, ToolFinished, WeightsPublished
from engine.journal import read_unnumbered
from examples import online_training
from examples.online_training import Lesson


@pytest.mark.real
@pytest.mark.timeout(300)
def test_agents_on_the_official_client_change_the_weights_that_answer_them(tmp_path: Path) -> None:
    lesson = Lesson(steps=2, num_questions=4, num_prompts=4, group_size=8)
    run_dir = f"run.dir={tmp_path}"
    config = materialise(Config.load(CONFIG, run_dir))
    command = online_training.serve_command(str(CONFIG), run_dir, lesson=lesson)
    said: list[str] = []
    outcome = asyncio.run(online_training.teach(config, command=command, lesson=lesson, say=said.append))
    print(outcome)
    assert outcome.version >= 2
    assert outcome.num_conversations >= 2 * lesson.num_prompts * lesson.group_size
    assert [line.split(":")[0].split()[0] for line in said] == ["before", "after"]
    (run,) = tmp_path.glob("online-*-serve")
    events: list[AnyEvent] = list(journal.read(run / "journal"))
    steps = [event.report for event in events if isinstance(event, StepFinished)]
    assert all(report.grad_norm > 0 and report.num_trained_tokens > 0 for report in steps)
    assert sum(isinstance(event, WeightsPublished) for event in events) >= 2
    said_on = [event for path in run.glob("traffic/agents/trees/*.log") for event in read_unnumbered(path)]
    assert {int(v) for e in said_on if isinstance(e, TokensSampled) for v in e.versions} >= {0, 1}
    assert any(isinstance(event, ToolFinished) and event.result.status == "ok" for event in said_on)
