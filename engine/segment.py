"""SegmentSampler: samples one segment of a path, by as many requests as that takes.

A request that fails is continued from the path's own tokens; what was streamed is kept. A stop string that begins in
one request and ends in the next one ends the segment all the same.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from engine.branching import Branching
from engine.coins import seed_of
from engine.deadline import Patience
from engine.errors import GeneratorError, RequestRefusedError
from engine.events import AnyTreeEvent, TokensSampled
from engine.interfaces import Samples
from engine.renderer import Renderer
from engine.rollout_config import SamplingConfig
from engine.stop_seam import StopSeam
from engine.tree import Path, TreeBuilder
from engine.turnstile import FIRST_COME, Precedence
from engine.types import Completion, GenerateRequest, Int32, RolloutStatus, SamplingParams

logger = logging.getLogger(__name__)

RETRY_S = 0.1
"""Wait before a failed segment is continued; doubled each time."""


def tokens_sampled(chunk: Completion, *, prompt_id: str, path: int) -> TokensSampled:
    """What a chunk of a generator's stream adds to a path; an aborted request leaves its segment growing."""
    return TokensSampled(
        prompt_id=prompt_id,
        path=path,
        token_ids=chunk.token_ids,
        logprobs=chunk.logprobs,
        entropy_low=chunk.entropy_low,
        entropy_high=chunk.entropy_high,
        versions=chunk.versions,
        finish_reason="" if chunk.finish_reason == "aborted" else chunk.finish_reason,
        num_cached_tokens=chunk.num_cached_tokens,
        num_prefilled_tokens=chunk.num_prefilled_tokens,
        is_mixed=chunk.is_mixed,
    )


class CannotGoOn(msgspec.Struct, frozen=True, kw_only=True):
    """Why a segment has no end: the path is out of tokens, or nobody samples it."""

    status: RolloutStatus
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class _Stops:
    """What `StopSeam` looks for: the dialect's strings, and those of one segment."""

    stop_strings: tuple[str, ...]
    renderer: Renderer

    def text(self, token_ids: Int32) -> str:
        return self.renderer.text(token_ids)


class SegmentSampler:
    """Samples for the paths of one tree; chunks go out as events through `emit`, which also applies them."""

    def __init__(
        self,
        tree: TreeBuilder,
        *,
        sampling: SamplingConfig,
        seed: int,
        branching: Branching,
        stream_interval: int,
        generator: Samples,
        renderer: Renderer,
        emit: Callable[[AnyTreeEvent], None],
        on_progress: Callable[[Path], None],
        precedence: Callable[[Path], Precedence] = lambda path: FIRST_COME,
    ) -> None:
        """`on_progress` is called after every chunk; `precedence` says who of those that wait for a slot goes first."""
        self._tree = tree
        self._prompt_id = tree.prompt.prompt_id
        self._sampling = sampling
        self._seed = seed
        self._branching = branching
        self._stream_interval = stream_interval
        self._generator = generator
        self._renderer = renderer
        self._emit = emit
        self._on_progress = on_progress
        self._precedence = precedence

    def room(self, path: Path) -> int:
        """Tokens the present segment may still grow by."""
        response = self._sampling.max_response_tokens - (path.length - path.prompt_length)
        return min(response, self._sampling.max_segment_tokens - (path.length - path.segment_start))

    async def sample(
        self, path: Path, *, max_tokens: int | None = None, stop: tuple[str, ...] = ()
    ) -> CannotGoOn | None:
        """Sample until the segment ends: with a stop, or behind `max_tokens`, or all there is room for.

        `stop` are strings at which it ends beside those of the dialect. None where it has ended.
        """
        error, begun = "", path.length
        end = path.length + min(self.room(path), max_tokens or self.room(path))
        for attempt in range(self._sampling.max_retries + 1):
            if end <= path.length:
                return CannotGoOn(status=RolloutStatus.TRUNCATED)
            try:
                await self._stream(path, self._request(path, attempt, end=end, stop=stop))
            except RequestRefusedError as refusal:
                return CannotGoOn(status=RolloutStatus.FAILED, detail=str(refusal))
            except (GeneratorError, TimeoutError) as failure:
                error = str(failure) or f"no chunk within {self._sampling.chunk_timeout_s:g} s"
                logger.warning("%s path %d: %s (attempt %d)", self._prompt_id, path.number, error, attempt + 1)
                await asyncio.sleep(RETRY_S * 2**attempt)
            if path.finish_reason and path.length > begun:  # not that of what is gone on with
                return None
        detail = error or "the stream ended without a finish reason"
        return CannotGoOn(status=RolloutStatus.FAILED, detail=detail)

    async def _stream(self, path: Path, request: GenerateRequest) -> None:
        stops = _Stops(stop_strings=request.sampling.stop, renderer=self._renderer)
        seam = StopSeam(stops, request.token_ids[path.segment_start :])
        silence_s = self._sampling.chunk_timeout_s
        async with contextlib.aclosing(self._generator.generate(request)) as chunks, Patience(silence_s) as patience:
            async for chunk in chunks:
                patience.renew()
                cut = seam.cut(chunk)
                self._emit(tokens_sampled(cut, prompt_id=self._prompt_id, path=path.number))
                self._on_progress(path)
                if cut.finish_reason:
                    return

    def _request(self, path: Path, attempt: int, *, end: int, stop: tuple[str, ...]) -> GenerateRequest:
        return GenerateRequest(
            request_id=f"{self._prompt_id}/{path.number}/{path.length}.{attempt}",
            token_ids=self._tree.token_ids(path),
            sampling=SamplingParams(
                max_new_tokens=end - path.length,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                top_k=self._sampling.top_k,
                stop=(*self._renderer.stop_strings, *stop),
                stop_token_ids=self._renderer.stop_token_ids,
                seed=seed_of(self._seed, self._prompt_id, path.number),
            ),
            affinity_key=self._prompt_id,
            stream_interval=self._branching.probe_tokens if self._is_probed(path) else self._stream_interval,
            precedence=self._precedence(path),
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
