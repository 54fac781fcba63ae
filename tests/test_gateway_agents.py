"""Agents on the official client teach the policy that answers them: `examples/online_training.py`, in short."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from actors import Config
from actors.bench.overlap import CONFIG
from actors.materials import materialise
from engine import journal
from engine.dataset_files import Row
from engine.events import AnyEvent, StepFinished, TokensSampled, ToolFinished, WeightsPublished
from engine.journal import read_unnumbered
from engine.traces import read_traces
from examples import online_training
from examples.online_training import Agents, Lesson
from tests.gateway_world import KEY, REWARD_KEY, make_words, world
from tests.test_gateway_client import Expert
from tools.config import SearchConfig, ToolsConfig, build_executor
from tools.python import PythonConfig
from tools.rewards import answer_of
from tools.toolworld import TOP_K, ToolworldConfig, generate


@pytest.mark.timeout(120)
def test_agents_are_rewarded_by_their_answers_and_measured_without_a_trace(tmp_path: Path) -> None:
    config = ToolworldConfig(num_sft=20, num_train=0, num_valid=0, num_test=0, num_drills=0, plus=0.5, sloppy=0.0)
    files = generate(config, tmp_path / "toolworld")
    traces = list(read_traces(files.sft))[:4]
    tokenizer = make_words(
        tmp_path / "words", words=msgspec.json.decode(Path(files.words).read_bytes(), type=list[str])
    )
    truths = [answer_of(trace.segments[-1].text) or "" for trace in traces]
    truths[1] = truths[3] = "another answer"
    rows = [
        Row(index=index, messages=tuple(trace.prompt), ground_truth=truth, data_source="")
        for index, (trace, truth) in enumerate(zip(traces, truths, strict=True))
    ]
    search = SearchConfig(corpus=files.corpus, top_k=TOP_K)

    async def main() -> None:
        async with (
            build_executor(ToolsConfig(search=search, python=PythonConfig())) as tools,
            world(
                tmp_path, policy=lambda _: Expert(tokenizer, traces), tokenizer=tokenizer, form="arpo", group_size=2
            ) as here,
            Agents(f"{here.url}/v1", tools, key=KEY, reward_key=REWARD_KEY) as agents,
        ):
            assert await agents.version() == 0
            assert await agents.success(rows[:2]) == 0.5
            assert here.groups == []
            for row in rows[2:]:
                await asyncio.gather(agents.learn(row), agents.learn(row))
            assert agents.num_rewarded == 4
            scores = [[t.reward.score for t in group.trajectories] for group in here.groups]
            assert scores == [[1.0, 1.0], [0.0, 0.0]]

    asyncio.run(main())


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
