"""Turn: one answer of the policy, from the generator's tokens to what a client sees, recorded on the way.

A chunk is an event before it is a piece: what a client may have seen is never more than what is recorded.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import msgspec
import numpy as np

from actors.gateway.conversation import Conversation
from actors.gateway.dialogue import Dialogue
from actors.gateway.errors import ApiError, refused
from actors.gateway.said import CallSaid, Message, TurnAsked, extended
from actors.gateway.store import Store
from actors.gateway.text_stream import TextStream
from engine.errors import GeneratorError, RequestRefusedError
from engine.interfaces import Generator
from engine.rollout_config import SamplingConfig
from engine.segment import RETRY_S
from engine.stop_seam import StopSeam
from engine.types import Completion, Float32, GenerateRequest, Int32, SamplingParams, ToolCall

Finish = Literal["stop", "length", "tool_calls"]


class TurnEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a turn ended, with its last piece."""

    finish: Finish
    calls: tuple[CallSaid, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_sampled_tokens: int


class Piece(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What became visible with one chunk. Produced by `Turns.run`, consumed by the protocols."""

    text: str
    token_ids: Int32
    logprobs: Float32
    end: TurnEnd | None = None


@dataclass(frozen=True, kw_only=True)
class _Stops:
    """What `StopSeam` looks for: the dialect's strings, and the client's."""

    stop_strings: tuple[str, ...]
    dialogue: Dialogue

    def text(self, token_ids: Int32) -> str:
        return self.dialogue.renderer.text(token_ids)


class Turns:
    """Samples turns for all conversations."""

    def __init__(
        self, generator: Generator, store: Store, *, sampling: SamplingConfig, max_length: int, stream_interval: int
    ) -> None:
        """`sampling` is what a client gets that wishes nothing, and what can be trained."""
        self._generator = generator
        self._store = store
        self._sampling = sampling
        self._max_length = max_length
        self._stream_interval = stream_interval

    async def run(
        self, conversation: Conversation, asked: TurnAsked, dialogue: Dialogue
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one answer; the last one has an `end`. The conversation is free again when this is closed.

        Raises `ApiError` for a context that is too long, for a policy that fails, and where somebody ends the
        conversation meanwhile. Closing it early aborts the request: the turn is cut off, and never trained.
        """
        path, start = conversation.path, conversation.path.length
        is_recorded = False
        try:
            sampling = self._params(asked, dialogue, length=start)
            conversation.is_off_policy |= not self._is_trainable(sampling)
            visible = _text_stream(asked, dialogue)
            said, num_cached = "", 0
            async with contextlib.aclosing(self._sampled(conversation, sampling, dialogue)) as chunks:
                async for chunk in chunks:
                    num_cached += chunk.num_cached_tokens
                    text = visible.add(chunk.token_ids.tolist())
                    said += text
                    if chunk.finish_reason:
                        break
                    yield Piece(text=text, token_ids=chunk.token_ids, logprobs=chunk.logprobs)
            segment = conversation.tree.builder.token_ids(path)[start:]
            is_stopped = chunk.finish_reason == "stop"
            calls = dialogue.calls(segment, is_stopped=is_stopped) if asked.may_call else ()
            rest = visible.end(has_calls=bool(calls))
            told = _told(calls)
            answer = Message(role="assistant", content=said + rest, calls=tuple(filter(None, told)))
            is_recorded = True
            self._store.end_turn(
                conversation,
                extended(asked.prefixes[-1], answer),
                calls=calls,
                call_ids=tuple("" if one is None else one.id for one in told),
            )
            end = TurnEnd(
                finish="tool_calls" if calls else "stop" if is_stopped else "length",
                calls=answer.calls,
                num_prompt_tokens=start,
                num_cached_tokens=min(num_cached, start),  # of several requests, where one failed
                num_sampled_tokens=segment.size,
            )
            yield Piece(text=text + rest, token_ids=chunk.token_ids, logprobs=chunk.logprobs, end=end)
        finally:
            if not is_recorded:
                self._store.end_turn(conversation, None)

    async def _sampled(
        self, conversation: Conversation, sampling: SamplingParams, dialogue: Dialogue
    ) -> AsyncGenerator[Completion, None]:
        """The chunks of one segment, each of them recorded; the last one has a finish reason.

        A generator that fails is asked to go on from what it has sampled.
        """
        path, start = conversation.path, conversation.path.length
        stops = _Stops(stop_strings=sampling.stop, dialogue=dialogue)
        error = "the stream ended without a finish reason"
        for attempt in range(self._sampling.max_retries + 1):
            request = self._request(conversation, sampling, num_sampled=path.length - start)
            seam = StopSeam(stops, request.token_ids[start:])
            try:
                async with contextlib.aclosing(self._generator.generate(request)) as chunks:
                    while (chunk := await self._next(chunks)) is not None:
                        chunk = seam.cut(chunk)
                        if conversation.is_over:
                            raise ApiError(409, f"{conversation.name!r} was ended", code="conversation_finished")
                        conversation.tree.sample(path, chunk)
                        if chunk.finish_reason == "aborted":  # by somebody else: what was sampled is gone on from
                            chunk = msgspec.structs.replace(chunk, finish_reason="")
                        if chunk.finish_reason or chunk.token_ids.size:
                            yield chunk
                        if chunk.finish_reason:
                            return
            except RequestRefusedError as refusal:
                raise refused(str(refusal)) from None
            except GeneratorError as failure:
                error = str(failure)
                await asyncio.sleep(RETRY_S * 2**attempt)
        raise ApiError(503, f"the policy does not answer: {error}", code="policy_unavailable")

    async def _next(self, chunks: AsyncGenerator[Completion, None]) -> Completion | None:
        try:
            async with asyncio.timeout(self._sampling.chunk_timeout_s):
                return await anext(chunks, None)
        except TimeoutError:
            raise GeneratorError(f"no chunk within {self._sampling.chunk_timeout_s:g} s") from None

    def _params(self, asked: TurnAsked, dialogue: Dialogue, *, length: int) -> SamplingParams:
        wishes, default = asked.wishes, self._sampling
        room = min(default.max_segment_tokens, self._max_length - length)
        if room < 1:
            raise refused(
                f"the conversation has {length} tokens, and {self._max_length} fit",
                param="messages",
                code="context_length_exceeded",
            )
        dialect = dialogue.renderer.stop_strings if dialogue.has_tools and asked.may_call else ()
        return SamplingParams(
            max_new_tokens=min(room, wishes.max_tokens or room),
            temperature=default.temperature if wishes.temperature is None else wishes.temperature,
            top_p=default.top_p if wishes.top_p is None else wishes.top_p,
            top_k=default.top_k,
            stop=tuple(dict.fromkeys((*dialect, *wishes.stop))),
            stop_token_ids=dialogue.renderer.stop_token_ids,
            seed=secrets.randbits(31) if wishes.seed is None else wishes.seed,
        )

    def _is_trainable(self, sampling: SamplingParams) -> bool:
        default = self._sampling
        return (sampling.temperature, sampling.top_p) == (default.temperature, default.top_p)

    def _request(self, conversation: Conversation, sampling: SamplingParams, *, num_sampled: int) -> GenerateRequest:
        tree = conversation.tree
        left = sampling.max_new_tokens - num_sampled
        return GenerateRequest(
            request_id=f"{tree.prompt_id}/{conversation.path.number}/{uuid4().hex[:12]}",
            token_ids=tree.builder.token_ids(conversation.path),
            sampling=msgspec.structs.replace(sampling, max_new_tokens=max(left, 1)),
            affinity_key=tree.prompt_id,
            cache_scope=tree.tenant,
            stream_interval=self._stream_interval,
        )


def _text_stream(asked: TurnAsked, dialogue: Dialogue) -> TextStream:
    renderer = dialogue.renderer

    def decode(token_ids: list[int]) -> str:
        return renderer.text(np.array(token_ids, dtype=np.int32))

    openings = renderer.call_openings if dialogue.has_tools and asked.may_call else ()
    return TextStream(decode, hidden=renderer.stop_token_ids, stops=asked.wishes.stop, openings=openings)


def _told(calls: tuple[ToolCall, ...]) -> list[CallSaid | None]:
    """The calls as the client is told of them; None for one that cannot be run, whose result is known here."""
    return [
        None
        if call.malformed
        else CallSaid(
            id=f"call_{uuid4().hex[:24]}", name=call.name, arguments=msgspec.json.encode(call.arguments).decode()
        )
        for call in calls
    ]
