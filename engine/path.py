"""PathRunner: one path from where it stands to its reward: sample, call tools, observe, sample again."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from engine.branching import Branching
from engine.coins import seed_of
from engine.deadline import Patience
from engine.errors import GeneratorError, RequestRefusedError, ToolError
from engine.events import (
    AnyTreeEvent,
    Observed,
    PathEnded,
    Rewarded,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    ToolRerun,
)
from engine.interfaces import Generator, ToolHost
from engine.ledger import PathLedger
from engine.renderer import Renderer
from engine.rollout_config import SamplingConfig
from engine.standing import Standing
from engine.stop_seam import StopSeam
from engine.tree import Path, TreeBuilder
from engine.turnstile import FIRST_COME, Precedence
from engine.types import GenerateRequest, Int32, Reward, RolloutStatus, SamplingParams, ToolCall, ToolResult

logger = logging.getLogger(__name__)

RETRY_S = 0.1
"""Wait before a failed segment is continued; doubled each time."""
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
        generator: Generator,
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
        self._seed = seed
        self._branching = branching
        self._stream_interval = stream_interval
        self._generator = generator
        self._tools = tools
        self._renderer = renderer
        self._standing = standing
        self._emit = emit
        self._on_progress = on_progress

    async def run(self, path: Path, *, ledger: PathLedger) -> None:
        """Grow `path` to its end and score it. Failures of generator, tools and reward end up in the path."""
        while path.is_live:
            if not path.finish_reason:
                await self._sample(path)
                continue
            segment = self._tree.segment(path)
            wanted = self._renderer.parse(segment) if path.finish_reason == "stop" else ()
            if path.finish_reason == "length" or (wanted and len(path.marks) >= self._sampling.max_turns):
                await self._end(path, RolloutStatus.TRUNCATED)
            elif wanted:
                await self._observe(path, segment, wanted, ledger)
            else:
                await self._end(path, RolloutStatus.COMPLETED)

    # -- sampling ---------------------------------------------------------------------------------------------

    async def _sample(self, path: Path) -> None:
        """Sample until the segment ends; a failed request is continued from the path's own tokens."""
        error = ""
        for attempt in range(self._sampling.max_retries + 1):
            if self._room(path) <= 0:
                await self._end(path, RolloutStatus.TRUNCATED)
                return
            try:
                await self._stream(path, self._request(path, attempt))
            except RequestRefusedError as refusal:
                await self._end(path, RolloutStatus.FAILED, detail=str(refusal))
                return
            except (GeneratorError, TimeoutError) as failure:
                error = str(failure) or f"no chunk within {self._sampling.chunk_timeout_s:g} s"
                logger.warning("%s path %d: %s (attempt %d)", self._prompt_id, path.number, error, attempt + 1)
                await asyncio.sleep(RETRY_S * 2**attempt)
            if path.finish_reason:
                return
        await self._end(path, RolloutStatus.FAILED, detail=error or "the stream ended without a finish reason")

    async def _stream(self, path: Path, request: GenerateRequest) -> None:
        seam = StopSeam(self._renderer, request.token_ids[path.segment_start :])
        fork_at = path.length + request.fork_after
        silence_s = self._sampling.chunk_timeout_s
        async with contextlib.aclosing(self._generator.generate(request)) as chunks, Patience(silence_s) as patience:
            async for chunk in chunks:
                patience.renew()
                cut = seam.cut(chunk)
                self._emit(
                    TokensSampled(
                        prompt_id=self._prompt_id,
                        path=path.number,
                        token_ids=cut.token_ids,
                        logprobs=cut.logprobs,
                        entropy_low=cut.entropy_low,
                        entropy_high=cut.entropy_high,
                        versions=cut.versions,
                        finish_reason="" if cut.finish_reason == "aborted" else cut.finish_reason,
                        num_cached_tokens=cut.num_cached_tokens,
                        num_prefilled_tokens=cut.num_prefilled_tokens,
                        is_mixed=cut.is_mixed,
                    )
                )
                self._on_progress(path)
                if cut.finish_reason:
                    return
                if path.length == fork_at:
                    seam = StopSeam(self._renderer, self._tree.segment(path))

    def _room(self, path: Path) -> int:
        """Tokens the present segment may still grow by."""
        response = self._sampling.max_response_tokens - (path.length - path.prompt_length)
        return min(response, self._sampling.max_segment_tokens - (path.length - path.segment_start))

    def _request(self, path: Path, attempt: int) -> GenerateRequest:
        return GenerateRequest(
            request_id=f"{self._prompt_id}/{path.number}/{path.length}.{attempt}",
            token_ids=self._tree.token_ids(path),
            sampling=SamplingParams(
                max_new_tokens=self._room(path),
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                top_k=self._sampling.top_k,
                stop=self._renderer.stop_strings,
                stop_token_ids=self._renderer.stop_token_ids,
                seed=seed_of(self._seed, self._prompt_id, path.number),
            ),
            affinity_key=self._prompt_id,
            stream_interval=self._branching.probe_tokens if self._is_probed(path) else self._stream_interval,
            precedence=self._standing.before_policy(path),
            fork_after=self._fork_after(path),
        )

    def _is_probed(self, path: Path) -> bool:
        """Whether the monitor waits for a probe: a chunk is then as long, so that it speaks at the first of them."""
        return self._branching.looks_ahead and path.num_considered < len(path.marks)

    def _fork_after(self, path: Path) -> int:
        """Tokens that are left of the probe at whose end branches may begin."""
        if self._branching.fork_at != "probe_end" or not self._is_probed(path):
            return 0
        return max(path.segment_start + self._branching.probe_tokens - path.length, 0)

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
        result = await self._execute(path, index, ledger, tools)
        self._emit(ToolFinished(prompt_id=self._prompt_id, path=path.number, index=index, result=result))

    async def _execute(self, path: Path, index: int, ledger: PathLedger, tools: ToolHost) -> ToolResult:
        call = path.calls[index]
        if call.malformed:
            return ToolResult(name=call.name, text=call.malformed, status="malformed")
        reservation = ledger.reserve()
        if reservation is None:
            return ToolResult(name=call.name, text=self._out_of_calls, status="refused")
        with reservation:
            turn = [one.name for one in path.calls[path.num_observed_calls :]]
            precedence = self._standing.before_tool(path, turn)
            result = await tools.call(call, history=path.calls[:index], precedence=precedence)
            reservation.settle(result)
        return result

    # -- the end ----------------------------------------------------------------------------------------------

    async def _end(self, path: Path, status: RolloutStatus, *, detail: str = "") -> None:
        """Score the path (a reward is a tool) and end it; one that cannot be scored has failed."""
        reward = Reward(score=0.0, reason=detail)
        if status is not RolloutStatus.FAILED:
            text = self._renderer.text(self._tree.token_ids(path)[path.prompt_length :])
            arguments = {"text": text, "ground_truth": self._tree.prompt.ground_truth, "tools_run": path.tools_run}
            result = await self._tools.call(ToolCall(name="reward", arguments=arguments))
            try:
                if result.status != "ok":
                    raise ToolError(result.text)
                reward = msgspec.json.decode(result.text, type=Reward)
            except (ToolError, msgspec.DecodeError) as error:
                status, detail = RolloutStatus.FAILED, f"reward: {error}"
                reward = Reward(score=0.0, reason=detail)
        # In this order: a process killed in between leaves a live path that is scored again, not an ended one without.
        self._emit(Rewarded(prompt_id=self._prompt_id, path=path.number, reward=reward))
        self._emit(PathEnded(prompt_id=self._prompt_id, path=path.number, status=status, detail=detail))


class _GivesUp:
    """Stands in for the tools where a call was interrupted twice; it counts as one that ran, which it may have."""

    specs = ()

    async def call(
        self, call: ToolCall, *, history: Sequence[ToolCall] = (), precedence: Precedence = FIRST_COME
    ) -> ToolResult:
        return ToolResult(name=call.name, text=INTERRUPTED, status="error")
