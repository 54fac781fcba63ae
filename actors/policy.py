"""Policy: what an agent of the user's holds; one path of a tree, which every call of it extends.

sample ──> segment: text, calls, log-probabilities ──> answer | say | write ──> sample ...
              └─ fork: another agent goes on from here, on a path of its own
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from actors.gateway.dialogue import Dialogue
from actors.gateway.said import Message
from engine.errors import GeneratorError, OutOfRoomError
from engine.events import AnyTreeEvent, Observed, TokensSampled, ToolFinished, ToolRequested
from engine.interfaces import ToolHost
from engine.ledger import PathLedger
from engine.path import paid_call
from engine.rollout_config import RolloutConfig
from engine.segment import CannotGoOn, SegmentSampler
from engine.tree import Path, TreeBuilder
from engine.types import FinishReason, Float32, Int32, Prompt, Reward, RolloutStatus, ToolCall, ToolResult, Value


class Segment(Value, frozen=True):
    """What the policy sampled at one time. Arrays have one entry a token."""

    text: str
    """Without the token that ends a turn."""
    calls: tuple[ToolCall, ...]
    """What it asks for, in the dialect of `[renderer]`; empty where it was cut off. One that cannot be run has
    `malformed`, a sentence for the policy."""
    finish_reason: FinishReason
    token_ids: Int32
    logprobs: Float32
    versions: Int32
    entropies: Float32
    """Nats; the middle of the interval where the generator gave one."""

    @property
    def is_cut(self) -> bool:
        """Whether it had more to say than it was allowed to."""
        return self.finish_reason == "length"


class Policy:
    """The handle that an agent is called with. Made by the engine; of no use when the agent has returned.

    One thing at a time: a second `sample` waits for nobody and raises `RuntimeError`; `fork` is how to do two.
    """

    def __init__(
        self,
        tree: TreeBuilder,
        path: Path,
        *,
        segments: SegmentSampler,
        dialogue: Dialogue,
        tools: ToolHost,
        ledger: PathLedger,
        config: RolloutConfig,
        emit: Callable[[AnyTreeEvent], None],
        branch: Callable[["Agent", "Policy"], bool],
    ) -> None:
        self._tree = tree
        self._path = path
        self._segments = segments
        self._dialogue = dialogue
        self._tools = tools
        self._ledger = ledger
        self._config = config
        self._emit = emit
        self._branch = branch
        self._is_sampling = False
        self._sampler: asyncio.Task[object] | None = None
        """Who samples now."""
        self.num_sampled = 0
        """Tokens that this handle sampled."""
        self.calls: tuple[ToolCall, ...] = ()
        """Of the last segment, not answered yet."""
        self.ended: CannotGoOn | None = None
        """Why the path may grow no further; None while it may."""

    def __repr__(self) -> str:
        return f"Policy({self.prompt.prompt_id}/{self.number}, {self._path.length} tokens, room for {self.room})"

    @property
    def prompt(self) -> Prompt:
        return self._tree.prompt

    @property
    def number(self) -> int:
        """Of its path in the tree."""
        return self._path.number

    @property
    def length(self) -> int:
        """Tokens of the path, prompt included."""
        return self._path.length

    @property
    def room(self) -> int:
        """Tokens that may still be sampled before something else is said."""
        return max(self._segments.room(self._path), 0)

    @property
    def text(self) -> str:
        """All that stands behind the prompt, as the policy reads it."""
        tokens = self._tree.token_ids(self._path)[self._path.prompt_length :]
        return self._dialogue.renderer.text(tokens)

    async def sample(self, *, max_tokens: int | None = None, stop: Sequence[str] = ()) -> Segment:
        """Have the policy go on, until it ends its turn, calls a tool, or says one of `stop`.

        It samples as `[rollout.sampling]` says, which is what can be trained; the tokens become a segment of the tree,
        with their log-probabilities and versions. `max_tokens` is a bound of this call alone: what it cuts can be
        gone on with. Raises `OutOfRoomError` where the path may grow no further, and `GeneratorError` where nobody
        samples any more; letting both pass is right. Raises `ValueError` for a bound below 1.
        """
        self._check_usable()
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"there is nothing to sample under {max_tokens=}")
        renderer = self._dialogue.renderer
        if self._segment.size and int(self._segment[-1]) in renderer.stop_token_ids:
            raise RuntimeError("the policy has ended its turn: answer its calls, or say something, before it goes on")
        self._is_sampling, before = True, len(self._tree.events)
        self._sampler = asyncio.current_task()
        try:
            self.ended = await self._segments.sample(self._path, max_tokens=max_tokens, stop=tuple(stop))
        finally:
            self._is_sampling, self._sampler = False, None
        events = self._tree.events[before:]
        chunks = [e for e in events if isinstance(e, TokensSampled) and e.path == self.number]
        self.num_sampled += sum(chunk.token_ids.size for chunk in chunks)
        if self.ended is not None:
            kind = OutOfRoomError if self.ended.status is RolloutStatus.TRUNCATED else GeneratorError
            raise kind(self.ended.detail or f"path {self.number} has the tokens that it may have")
        is_stopped = self._path.finish_reason == "stop"
        self.calls = renderer.parse(self._segment) if is_stopped else ()
        return self._as_segment(chunks)

    async def close(self) -> None:
        """End what an agent left sampling behind it, so that nothing grows an ended path."""
        if (task := self._sampler) is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    async def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run calls by the tools of the session, side by side and under the budgets; failures are results too.

        Nothing is told the policy by that: `answer` does.
        """
        self._check_usable()
        history = list(self._path.calls)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    paid_call(
                        call,
                        history=[*history, *calls[:place]],
                        tools=self._tools,
                        ledger=self._ledger,
                        out_of_calls=self._config.budget.out_of_calls,
                    ),
                    name=f"{self.prompt.prompt_id}/{self.number}/{call.name}",
                )
                for place, call in enumerate(calls)
            ]
        return [task.result() for task in tasks]

    def answer(self, *results: str | ToolResult) -> None:
        """Show the policy what became of the calls of its last segment, one result a call and in their order.

        They are observed, never trained. Raises `ValueError` for another number of them.
        """
        if len(results) != len(self.calls) or not results:
            raise ValueError(f"{len(results)} results for {len(self.calls)} calls")
        found = [
            # What the agent found by itself no tool ran, and no budget pays for.
            ToolResult(name=call.name, text=result, is_shared=True) if isinstance(result, str) else result
            for call, result in zip(self.calls, results, strict=True)
        ]
        tokens = self._dialogue.renderer.render_results(found, segment=self._segment)
        self._observe(tokens, list(zip(self.calls, found, strict=True)))

    def say(self, text: str) -> None:
        """A turn of the user's behind what the policy said, in the model's own chat template."""
        message = Message(role="user", content=text)
        self._observe(self._dialogue.behind([message], segment=self._segment, results=()), [])

    def write(self, text: str) -> None:
        """Text right behind what the policy said, as it is: in no turn and in no tag; for dialects of your own."""
        self._observe(self._dialogue.text(text), [])

    def fork(self, agent: "Agent") -> bool:
        """Have `agent` go on from here on a path of its own, beside this one; False where the tree has no room.

        It is called with a handle of its own, and what it returns is the score of its path.
        """
        self._check_usable()
        return self._branch(agent, self)

    @property
    def _segment(self) -> Int32:
        return self._tree.segment(self._path)

    def _observe(self, token_ids: Int32, answered: Sequence[tuple[ToolCall, ToolResult]]) -> None:
        self._check_usable()
        if len(self._path.marks) >= self._config.sampling.max_turns:
            self.ended = CannotGoOn(status=RolloutStatus.TRUNCATED)
            raise OutOfRoomError(f"path {self.number} has the turns that it may have")
        name = self.prompt.prompt_id
        for index, (call, result) in enumerate(answered, start=len(self._path.calls)):
            self._emit(ToolRequested(prompt_id=name, path=self.number, call=call, index=index))
            self._emit(ToolFinished(prompt_id=name, path=self.number, index=index, result=result))
        self._emit(Observed(prompt_id=name, path=self.number, token_ids=token_ids))
        self.calls = ()

    def _check_usable(self) -> None:
        if self._is_sampling:
            raise RuntimeError("the policy is sampling on this path: fork, to do two things at a time")
        if not self._path.is_live:
            raise RuntimeError("its agent has returned: the path has ended")

    def _as_segment(self, chunks: Sequence[TokensSampled]) -> Segment:
        renderer = self._dialogue.renderer
        token_ids = np.concatenate([chunk.token_ids for chunk in chunks])
        shown = token_ids[:-1] if int(token_ids[-1]) in renderer.stop_token_ids else token_ids
        return Segment(
            text=renderer.text(shown),
            calls=self.calls,
            finish_reason=self._path.finish_reason,
            token_ids=token_ids,
            logprobs=np.concatenate([chunk.logprobs for chunk in chunks]),
            versions=np.concatenate([chunk.versions for chunk in chunks]),
            entropies=np.concatenate([(c.entropy_low + c.entropy_high) * np.float32(0.5) for c in chunks]),
        )


Verdict = Reward | float | str | None
"""What an agent returns: a score; a text that the reward reads as the response; None where it reads the whole path."""
Agent = Callable[[Policy, Prompt], Awaitable[Verdict]]
"""An async function that has the policy act: its calls of the handle become a path of the prompt's tree."""
