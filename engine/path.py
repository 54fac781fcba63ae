"""PathRunner: one path from where it stands to its reward: sample, call tools, observe, sample again."""

import asyncio
from collections.abc import Callable, Sequence

from engine.branching import Branching
from engine.errors import ToolError
from engine.events import AnyTreeEvent, Observed, PathEnded, Rewarded, ToolFinished, ToolRequested, ToolRerun
from engine.interfaces import Samples, ToolHost
from engine.ledger import PathLedger
from engine.path_reward import reward_of
from engine.renderer import Renderer
from engine.rollout_config import SamplingConfig
from engine.segment import SegmentSampler
from engine.standing import Standing
from engine.tree import Path, TreeBuilder
from engine.turnstile import FIRST_COME, Precedence
from engine.types import Int32, Reward, RolloutStatus, ToolCall, ToolResult

INTERRUPTED = "Tool call interrupted twice; nobody knows whether it ran. Go on without its result."


class PathRunner:
    """Runs the paths of one tree; what happens goes out as events through `emit`, which also applies them."""

    def __init__(
        self,
        tree: TreeBuilder,
        *,
        sampling: SamplingConfig,
        out_of_calls: str,
        seed: int,
        branching: Branching,
        stream_interval: int,
        generator: Samples,
        tools: ToolHost,
        renderer: Renderer,
        standing: Standing,
        emit: Callable[[AnyTreeEvent], None],
        on_progress: Callable[[Path], None],
    ) -> None:
        """`on_progress` is called after every chunk and every observation: the place where forks are considered.

        `out_of_calls` is the result of a call that no budget pays for.
        """
        self._tree = tree
        self._prompt_id = tree.prompt.prompt_id
        self._sampling = sampling
        self._out_of_calls = out_of_calls
        self._tools = tools
        self._renderer = renderer
        self._standing = standing
        self._emit = emit
        self._on_progress = on_progress
        self._segments = SegmentSampler(
            tree,
            sampling=sampling,
            seed=seed,
            branching=branching,
            stream_interval=stream_interval,
            generator=generator,
            renderer=renderer,
            emit=emit,
            on_progress=on_progress,
            precedence=standing.before_policy,
        )

    async def run(self, path: Path, *, ledger: PathLedger) -> None:
        """Grow `path` to its end and score it. Failures of generator, tools and reward end up in the path."""
        while path.is_live:
            if not path.finish_reason:
                if (end := await self._segments.sample(path)) is not None:
                    await self._end(path, end.status, detail=end.detail)
                continue
            segment = self._tree.segment(path)
            wanted = self._renderer.parse(segment) if path.finish_reason == "stop" else ()
            if path.finish_reason == "length" or (wanted and len(path.marks) >= self._sampling.max_turns):
                await self._end(path, RolloutStatus.TRUNCATED)
            elif wanted:
                await self._observe(path, segment, wanted, ledger)
            else:
                await self._end(path, RolloutStatus.COMPLETED)

    # -- tools ------------------------------------------------------------------------------------------------

    async def _observe(self, path: Path, segment: Int32, wanted: Sequence[ToolCall], ledger: PathLedger) -> None:
        """Run the calls of one turn concurrently and show the policy their results, in the order of the calls.

        Calls that a journal already knows are not requested again, and their results are not computed again. One that
        it knows without a result was under way when a process ended: whether it ran is not known, and it is run again,
        so it has run *at least* once, and takes one place under the budget. Interrupted again, it has failed.
        """
        first = path.num_observed_calls
        hosts: dict[int, ToolHost] = {}
        for index, call in enumerate(wanted, start=first):
            tools = self._tools
            if index >= len(path.calls):
                self._emit(ToolRequested(prompt_id=self._prompt_id, path=path.number, call=call, index=index))
            elif index in path.results:
                continue
            elif index in path.rerun:
                tools = _GivesUp()
            else:
                self._emit(ToolRerun(prompt_id=self._prompt_id, path=path.number, index=index))
            hosts[index] = tools
        if len(hosts) == 1:  # as in most turns: the task of the path can do it
            for index, tools in hosts.items():
                await self._call(path, index, ledger, tools)
        else:
            async with asyncio.TaskGroup() as group:
                for index, tools in hosts.items():
                    name = f"{self._prompt_id}/{path.number}/{path.calls[index].name}"
                    group.create_task(self._call(path, index, ledger, tools), name=name)
        results = [path.results[index] for index in range(first, first + len(wanted))]
        tokens = self._renderer.render_results(results, segment=segment)
        self._emit(Observed(prompt_id=self._prompt_id, path=path.number, token_ids=tokens))
        self._on_progress(path)

    async def _call(self, path: Path, index: int, ledger: PathLedger, tools: ToolHost) -> None:
        turn = [one.name for one in path.calls[path.num_observed_calls :]]
        result = await paid_call(
            path.calls[index],
            history=path.calls[:index],
            tools=tools,
            ledger=ledger,
            out_of_calls=self._out_of_calls,
            precedence=self._standing.before_tool(path, turn),
        )
        self._emit(ToolFinished(prompt_id=self._prompt_id, path=path.number, index=index, result=result))

    # -- the end ----------------------------------------------------------------------------------------------

    async def _end(self, path: Path, status: RolloutStatus, *, detail: str = "") -> None:
        """Score the path (a reward is a tool) and end it; one that cannot be scored has failed."""
        reward = Reward(score=0.0, reason=detail)
        if status is not RolloutStatus.FAILED:
            try:
                reward = await reward_of(self._tree, path, tools=self._tools, renderer=self._renderer)
            except ToolError as error:
                status, detail = RolloutStatus.FAILED, str(error)
                reward = Reward(score=0.0, reason=detail)
        # In this order: a process killed in between leaves a live path that is scored again, not an ended one without.
        self._emit(Rewarded(prompt_id=self._prompt_id, path=path.number, reward=reward))
        self._emit(PathEnded(prompt_id=self._prompt_id, path=path.number, status=status, detail=detail))


async def paid_call(
    call: ToolCall,
    *,
    history: Sequence[ToolCall],
    tools: ToolHost,
    ledger: PathLedger,
    out_of_calls: str,
    precedence: Precedence = FIRST_COME,
) -> ToolResult:
    """Run a call where it is well-formed and the budgets pay for it; `out_of_calls` is what it comes to otherwise."""
    if call.malformed:
        return ToolResult(name=call.name, text=call.malformed, status="malformed")
    reservation = ledger.reserve()
    if reservation is None:
        return ToolResult(name=call.name, text=out_of_calls, status="refused")
    with reservation:
        result = await tools.call(call, history=history, precedence=precedence)
        reservation.settle(result)
    return result


class _GivesUp:
    """Stands in for the tools where a call was interrupted twice; it counts as one that ran, which it may have."""

    specs = ()

    async def call(
        self, call: ToolCall, *, history: Sequence[ToolCall] = (), precedence: Precedence = FIRST_COME
    ) -> ToolResult:
        return ToolResult(name=call.name, text=INTERRUPTED, status="error")
