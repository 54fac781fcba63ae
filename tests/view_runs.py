"""Runs for the page: whole ones with everything in them, and a tree as large as one likes, event by event."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from actors.config import Config, TinyModel
from actors.run_dir import RunDir
from actors.view.texts import Texts
from engine.dataset import DataConfig
from engine.events import (
    AnyEvent,
    BatchTaken,
    Evaluated,
    ForkConsidered,
    Forked,
    GeneratorsMeasured,
    GroupFinished,
    GroupRefused,
    Observed,
    PathEnded,
    PathStarted,
    PhaseStarted,
    PromptAdmitted,
    Rewarded,
    RunFinished,
    RunStarted,
    StepFinished,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    WeightsPublished,
)
from engine.journal import Journal
from engine.types import Int32, Prompt, Reward, RolloutStatus, ToolCall, ToolResult
from tests.report_runs import report

WORDS = (
    "<think>", "</think>", "<search>", "</search>", "<result>", "</result>", "<answer>", "</answer>",
    "the", "city", "of", "Rome", "Oslo", "Lima", "has", "population", "river", "length", "is", "about", "two",
    "million", "people", "so", "then", "compare", "both", "sum", "difference", "larger", "smaller", "which",
)  # fmt: skip
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def decode(token_ids: Int32) -> str:
    """One word a token; the token behind the last word is hostile."""
    return " ".join(WORDS[i] if i < len(WORDS) else HOSTILE for i in token_ids.tolist())


def texts() -> Texts:
    return Texts(decode)


@dataclass
class Grower:
    """Grows trees whose events come in the order of their times."""

    random: Random
    events: list[AnyEvent] = field(default_factory=list[AnyEvent])

    def tree(
        self,
        name: str,
        *,
        t: float,
        index: int = 0,
        version: int = 0,
        num_paths: int = 8,
        tools: Sequence[str] = ("search", "python"),
        size: int = 14,
        is_whole: bool = True,
        hostile: bool = False,
    ) -> float:
        """A tree of `num_paths` paths, half of them branches; returns when it was finished."""
        prompt_ids = np.arange(8, 24, dtype=np.int32)
        prompt = Prompt(
            prompt_id=name,
            epoch=0,
            row=index,
            token_ids=prompt_ids,
            question=HOSTILE if hostile else f"Which of the two rivers of {name} is longer ?",
            ground_truth="the larger",
        )
        self._add(PromptAdmitted, name, t, prompt=prompt, version=version, index=index, cohort=index // 4)
        looked: list[tuple[float, int, int, int]] = []

        def begin(path: int, at: float, length: int, num_calls: int) -> None:
            """Until the monitor looks behind the first result."""
            at, length = self._segment(name, path, at, length, version, size, ends=True, hostile=hostile)
            at, length = self._call(name, path, at, length, self.random.choice(tools), num_calls, hostile=hostile)
            at, length = self._segment(name, path, at, length, version, 4, ends=False)
            heapq.heappush(looked, (at, path, length, num_calls + 1))

        count = max(num_paths // 2, 1)
        for path in range(count):
            self._add(PathStarted, name, t, path=path)
        for path in range(count):
            begin(path, t, prompt_ids.size, 0)
        last = t
        while looked:
            at, path, length, num_calls = heapq.heappop(looked)
            is_wanted = self.random.random() < 0.6
            look = {"entropy_low": 0.9, "entropy_high": 1.1, "baseline": 0.4, "score": 0.62 if is_wanted else 0.31}
            where: dict[str, Any] = {"path": path, "observation": 1, "length": length, "is_wanted": is_wanted}
            self._add(ForkConsidered, name, at, coin=0.5, **where, **look)
            if is_wanted and count < num_paths:
                self._add(Forked, name, at, path=path, child=count, length=length)
                begin(count, at, length, num_calls)
                count += 1
            at, _ = self._segment(name, path, at, length, version, size, ends=True)
            if not is_whole and path == 0:
                continue
            at += 0.01
            is_correct = self.random.random() < 0.5
            reward = Reward(score=float(is_correct), is_correct=is_correct, components={"format": 1.0})
            self._add(Rewarded, name, at, path=path, reward=reward)
            self._add(PathEnded, name, at, path=path, status=RolloutStatus.COMPLETED)
            last = max(last, at)
        if is_whole:
            self._add(GroupFinished, name, last)
        return last

    def ordered(self) -> list[AnyEvent]:
        return sorted(self.events, key=lambda event: event.t)

    def _add(self, kind: Any, name: str, t: float, **fields: Any) -> None:
        self.events.append(kind(prompt_id=name, t=t, **fields))

    def _segment(
        self, name: str, path: int, t: float, length: int, version: int, size: int, *, ends: bool, hostile: bool = False
    ) -> tuple[float, int]:
        count = max(self.random.randrange(size // 2, size + 1), 1)
        token_ids = np.array([self.random.randrange(len(WORDS)) for _ in range(count)], np.int32)
        if hostile:
            token_ids[0] = len(WORDS)
        levels = np.array([self.random.expovariate(3.0) for _ in range(count)], np.float32)
        t += count * self.random.uniform(0.008, 0.02)
        self._add(
            TokensSampled,
            name,
            t,
            path=path,
            token_ids=token_ids,
            logprobs=-levels,
            entropy_low=levels,
            entropy_high=levels,
            versions=np.full(count, version, np.int32),
            finish_reason="stop" if ends else "",
        )
        return t, length + count

    def _call(
        self, name: str, path: int, t: float, length: int, tool: str, index: int, *, hostile: bool
    ) -> tuple[float, int]:
        call = ToolCall(name=tool, arguments={"query": HOSTILE if hostile else "population of Rome"})
        self._add(ToolRequested, name, t, path=path, call=call, index=index)
        duration_s = self.random.lognormvariate(-2.2 if tool == "search" else -1.2, 0.7)
        kind = self.random.random()
        status = "ok" if kind > 0.06 else "error" if kind > 0.02 else "timeout"
        result = ToolResult(
            name=tool,
            text=HOSTILE if hostile else "Traceback: no such name" if status == "error" else "2.7 million people",
            status=status,
            is_cached=status == "ok" and kind > 0.75,
            duration_s=duration_s,
        )
        t += duration_s
        self._add(ToolFinished, name, t, path=path, index=index, result=result)
        token_ids = np.array([4, 20, 21, 22, *[self.random.randrange(8, len(WORDS)) for _ in range(6)], 5], np.int32)
        if hostile:
            token_ids[1] = len(WORDS)
        self._add(Observed, name, t, path=path, token_ids=token_ids)
        return t, length + token_ids.size


def whole_run(*, num_steps: int = 12, num_groups: int = 6, seed: int = 0, is_finished: bool = True) -> list[AnyEvent]:
    """A run whose groups overlap in time, with a refused one now and then; what is open at the end grows still."""
    random = Random(seed)
    events: list[AnyEvent] = [RunStarted(run="r", config_digest=""), PhaseStarted(name="reinforcement learning", t=0.5)]
    events.append(Evaluated(step=0, version=0, metrics={"success": 0.3, "questions": 100.0}, t=0.4))
    t, index, learner_free = 0.6, 0, 0.6
    for step in range(1, num_steps + 1):
        names: list[str] = []
        finished = t
        for place in range(num_groups):
            name = f"e0-r{index}"
            grower = Grower(random)
            begun = t + place * random.uniform(0.0, 0.15)
            ended = grower.tree(name, t=begun, index=index, version=max(step - 2, 0), hostile=index == 3)
            events += grower.events
            if random.random() < 0.12:
                events.append(GroupRefused(prompt_id=name, reason="no learning signal", t=ended))
            else:
                names.append(name)
                finished = max(finished, ended)
            index += 1
        taken = max(finished, learner_free) + 0.01
        wait_s = max(taken - learner_free, 0.0)
        step_s = random.uniform(0.5, 0.9)
        learner_free = taken + step_s + 0.1
        told = report(step, loss=0.5 / step, duration_s=step_s, others=0.02 / step + 0.01 * random.random())
        events += [
            BatchTaken(step=step, prompt_ids=tuple(names), wait_s=wait_s, t=taken),
            StepFinished(report=told, t=taken + step_s),
            WeightsPublished(version=step, step=step, prompt_ids=tuple(names), t=learner_free),
            GeneratorsMeasured(busy_s=learner_free * 0.7, num_sampled_tokens=400 * step, t=learner_free),
        ]
        if step % 4 == 0:
            metrics = {"success": min(0.3 + 0.05 * step, 1.0), "questions": 100.0}
            events.append(Evaluated(step=step, version=step, metrics=metrics, t=learner_free))
        t = taken - 0.3 * random.random()
    if is_finished:
        events.append(RunFinished(t=max(event.t for event in events)))
    else:
        grower = Grower(random)
        grower.tree(f"e0-r{index}", t=max(event.t for event in events), index=index, version=num_steps, is_whole=False)
        events += grower.events
    return sorted(events, key=lambda event: event.t)


def large_tree(name: str, *, num_paths: int, size: int = 12) -> Iterator[AnyEvent]:
    """A tree of about four nodes a path."""
    grower = Grower(Random(1))
    grower.tree(name, t=1.0, num_paths=num_paths, size=size)
    yield RunStarted(run="r", config_digest="")
    yield PhaseStarted(name="reinforcement learning", t=0.5)
    yield from grower.ordered()


def make_run(path: Path, events: Sequence[AnyEvent], *, config: Config | None = None) -> RunDir:
    """A folder with a journal of these events."""
    run = RunDir(path)
    with Journal(run.journal) as journal:
        for event in events:
            journal.append(event)
    run.write_config(config or a_config())
    return run


def a_config() -> Config:
    return Config(model=TinyModel(), data=DataConfig(path="world:train"))


def same(one: object, other: object) -> bool:
    """Whether two things are the same as JSON."""
    return msgspec.json.encode(one) == msgspec.json.encode(other)
