"""TrafficTree: one tree of a tenant's traffic; a fold of its events, like the tree of a rollout.

A path is what a conversation has come to. Conversations that begin with the same prompt may share a tree (a group), and
so do a conversation and its forks, or what it was before a client rewrote its history.
"""

import time
from collections.abc import Sequence
from uuid import uuid4

import msgspec

from actors.gateway.records import Records
from engine.events import (
    AnyTreeEvent,
    Forked,
    GroupFinished,
    Observed,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    Rewarded,
    ToolFinished,
    ToolRequested,
)
from engine.segment import tokens_sampled
from engine.tree import Path, TreeBuilder
from engine.types import (
    Completion,
    Int32,
    Prompt,
    Reward,
    RolloutStatus,
    ToolCall,
    ToolResult,
    TrajectoryGroup,
    Version,
)


def prompt_id_of(tenant: str, tree: str) -> str:
    """What a tree of this name is called where trees of all tenants meet."""
    return f"{tenant}/{tree}"


class TrafficTree:
    """Grows by verbs, each of which is an event; `flush` writes what happened since the last one."""

    def __init__(
        self, tenant: str, prompt: Int32, *, question: str, version: Version, index: int, records: Records
    ) -> None:
        self.tenant = tenant
        self.name = uuid4().hex
        self.prompt_id = prompt_id_of(tenant, self.name)
        self.is_deleted = False
        self.settled_at = 0.0
        """On the loop's clock: when a path of it ended last."""
        self._records = records
        self._unwritten: list[AnyTreeEvent] = []
        asked = Prompt(
            prompt_id=self.prompt_id,
            epoch=0,
            row=index,
            token_ids=prompt,
            question=question,
            ground_truth="",
            data_source=tenant,
        )
        self.builder = TreeBuilder(asked)
        self._emit(PromptAdmitted(prompt_id=self.prompt_id, prompt=asked, version=version, index=index, cohort=0))

    @property
    def num_paths(self) -> int:
        return len(self.builder.paths)

    @property
    def is_live(self) -> bool:
        """Whether a path of it may still grow, or be rewarded."""
        return bool(self.builder.live_paths)

    def start(self) -> Path:
        """A path at the prompt."""
        number = self.num_paths
        self._emit(PathStarted(prompt_id=self.prompt_id, path=number))
        return self.builder.paths[number]

    def fork(self, parent: Path, length: int) -> Path:
        """A path that begins with the first `length` tokens of another one."""
        if length == parent.prompt_length:
            return self.start()
        child = self.num_paths
        self._emit(Forked(prompt_id=self.prompt_id, path=parent.number, child=child, length=length))
        return self.builder.paths[child]

    def sample(self, path: Path, chunk: Completion) -> None:
        self._emit(tokens_sampled(chunk, prompt_id=self.prompt_id, path=path.number))

    def observe(
        self, path: Path, token_ids: Int32, *, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> None:
        """What the client said behind a turn: `results` of its `calls`, and all of it as tokens."""
        first = len(path.calls)
        for index, (call, result) in enumerate(zip(calls, results, strict=True), start=first):
            self._emit(ToolRequested(prompt_id=self.prompt_id, path=path.number, call=call, index=index))
            self._emit(ToolFinished(prompt_id=self.prompt_id, path=path.number, index=index, result=result))
        self._emit(Observed(prompt_id=self.prompt_id, path=path.number, token_ids=token_ids))

    def end(self, path: Path, *, reward: Reward | None, detail: str) -> None:
        """End a path: with its reward, or as one that is never trained, because of `detail`."""
        status = RolloutStatus.FAILED if reward is None else RolloutStatus.COMPLETED
        if status is RolloutStatus.COMPLETED and path.finish_reason == "length":
            status = RolloutStatus.TRUNCATED
        given = reward or Reward(score=0.0, reason=detail)
        self._emit(Rewarded(prompt_id=self.prompt_id, path=path.number, reward=given))
        self._emit(PathEnded(prompt_id=self.prompt_id, path=path.number, status=status, detail=detail))

    def finish(self) -> TrajectoryGroup:
        """The whole tree, when none of its paths lives."""
        self._emit(GroupFinished(prompt_id=self.prompt_id))
        self.flush()
        return self.builder.group()

    def flush(self) -> None:
        """Write what is not written yet; a deleted tree writes nothing."""
        if not self.is_deleted:
            self._records.append(self.tenant, self.name, self._unwritten)
        self._unwritten = []

    def _emit(self, event: AnyTreeEvent) -> None:
        event = msgspec.structs.replace(event, t=time.time())
        self.builder.apply(event)
        self._unwritten.append(event)
