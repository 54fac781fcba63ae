"""What a run journaled, event by event: the stories of prompts and the steps that trained on them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.events import (
    AnyEvent,
    BatchTaken,
    ForkConsidered,
    Forked,
    GroupFinished,
    Observed,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    Rewarded,
    StepFinished,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    WeightsPublished,
)
from engine.reports import StepReport
from engine.types import Int32, Prompt, Reward, RolloutStatus, ToolCall, ToolResult

PROMPT = "Q:"


def ids(text: str) -> Int32:
    """One token a character."""
    return np.frombuffer(text.encode("utf-32-le"), np.int32)


def text_of(token_ids: Int32) -> str:
    """The text that `ids` was given."""
    return token_ids.astype(np.int32).tobytes().decode("utf-32-le")


@dataclass
class Story:
    """What happened to one prompt."""

    name: str
    version: int = 0
    t: float = 0.0
    events: list[AnyEvent] = field(default_factory=list[AnyEvent])
    num_calls: dict[int, int] = field(default_factory=dict[int, int])

    def __post_init__(self) -> None:
        prompt = Prompt(prompt_id=self.name, epoch=0, row=0, token_ids=ids(PROMPT), question="who?", ground_truth="me")
        self.add(PromptAdmitted, prompt=prompt, version=self.version, index=0, cohort=0)

    def add(self, kind: Any, **fields: Any) -> "Story":
        self.events.append(kind(prompt_id=self.name, t=self.t, **fields))
        return self

    def start(self, path: int) -> "Story":
        self.num_calls[path] = 0
        return self.add(PathStarted, path=path)

    def sample(self, path: int, *entropies: float) -> "Story":
        """A token for each entropy."""
        return self._sampled(path, np.ones(len(entropies), np.int32), np.array(entropies, np.float32))

    def write(self, path: int, text: str, *, entropy: float = 0.0) -> "Story":
        """The tokens of a text, all of one entropy."""
        return self._sampled(path, ids(text), np.full(len(text), entropy, np.float32))

    def _sampled(self, path: int, token_ids: Int32, levels: np.ndarray) -> "Story":
        return self.add(
            TokensSampled,
            path=path,
            token_ids=token_ids,
            logprobs=-levels,
            entropy_low=levels,
            entropy_high=levels,
            versions=np.full(levels.size, self.version, np.int32),
        )

    def call(
        self,
        path: int,
        tool: str,
        *,
        size: int = 0,
        text: str = "",
        is_cached: bool = False,
        duration_s: float = 0.0,
    ) -> "Story":
        """A call whose result is a text, or `size` tokens of no meaning."""
        index = self.num_calls[path]
        self.num_calls[path] += 1
        result = ToolResult(name=tool, text=text, is_cached=is_cached, duration_s=duration_s)
        self.add(ToolRequested, path=path, call=ToolCall(name=tool, arguments={}), index=index)
        self.add(ToolFinished, path=path, index=index, result=result)
        return self.add(Observed, path=path, token_ids=ids(text) if text else np.full(size, 2, np.int32))

    def consider(self, path: int, *, observation: int, length: int, is_wanted: bool, **numbers: float) -> "Story":
        """Numbers that are not given are 0.5."""
        numbers = dict.fromkeys(("entropy_low", "entropy_high", "baseline", "score", "coin"), 0.5) | numbers
        where = {"path": path, "observation": observation, "length": length, "is_wanted": is_wanted}
        return self.add(ForkConsidered, **where, **numbers)

    def fork(self, path: int, child: int, *, length: int, num_inherited_calls: int) -> "Story":
        self.num_calls[child] = num_inherited_calls
        return self.add(Forked, path=path, child=child, length=length)

    def end(self, path: int, score: float, *, status: str = "completed") -> "Story":
        self.add(Rewarded, path=path, reward=Reward(score=score, is_correct=score == 1.0))
        return self.add(PathEnded, path=path, status=RolloutStatus(status))

    def finish(self) -> list[AnyEvent]:
        return self.add(GroupFinished).events


def report(step: int, *, loss: float = 1.0, duration_s: float = 2.0, others: float = 0.0) -> StepReport:
    """Of a step on 10 trained tokens of 30, in trees whose paths have 40; `others` is whatever else was measured."""
    numbers = dict.fromkeys(
        ("grad_norm", "learning_rate", "entropy", "kl_rollout", "ratio_max", "clip_fraction"), others
    )
    counts = {"num_trained_tokens": 10, "num_computed_tokens": 30, "num_path_tokens": 40}
    return StepReport(step=step, version=step, loss=loss, duration_s=duration_s, **counts, **numbers)


def step(
    number: int,
    *names: str,
    t: float,
    wait_s: float = 0.0,
    step_s: float = 2.0,
    publish_s: float = 0.5,
    **numbers: float,
) -> list[AnyEvent]:
    """A step on the groups of these names that took `step_s` and ended at `t`; `numbers` are those of its report."""
    return [
        BatchTaken(step=number, prompt_ids=names, wait_s=wait_s, t=t - step_s),
        StepFinished(report=report(number, duration_s=step_s, **numbers), t=t),
        WeightsPublished(version=number, step=number, prompt_ids=names, t=t + publish_s),
    ]
