"""OpenAI's replies: the pieces of a turn as one JSON object, or as chunks of a stream."""

import time
from collections.abc import Sequence
from typing import Any, Protocol
from uuid import uuid4

from actors.gateway.dialogue import Dialogue
from actors.gateway.errors import ApiError
from actors.gateway.said import CallSaid
from actors.gateway.sse import event
from actors.gateway.turn import Piece, TurnEnd

DONE = b"data: [DONE]\n\n"


class Reply(Protocol):
    """One turn in the form of one protocol. Made anew for each request."""

    def begin(self) -> bytes:
        """What a stream opens with."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """What a stream says of a piece; nothing where nothing became visible."""
        ...

    def error(self, error: ApiError) -> bytes:
        """What a stream that has begun ends with where it fails."""
        ...

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """All pieces at once, for a client that wants no stream."""
        ...


class _Envelope:
    """What each object of a reply begins with."""

    def __init__(self, kind: str, prefix: str, *, model: str, conversation: str) -> None:
        self._head = {
            "id": f"{prefix}-{uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "conversation_id": conversation,
        }

    def of(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "choices": choices, **more}


class ChatReply:
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(
        self,
        dialogue: Dialogue,
        *,
        model: str,
        conversation: str,
        has_logprobs: bool,
        has_usage: bool,
        is_stream: bool,
    ) -> None:
        kind = "chat.completion.chunk" if is_stream else "chat.completion"
        self._envelope = _Envelope(kind, "chatcmpl", model=model, conversation=conversation)
        self._dialogue = dialogue
        self._has_logprobs = has_logprobs
        self._has_usage = has_usage

    def begin(self) -> bytes:
        return event(self._envelope.of([_choice({"role": "assistant", "content": ""})]))

    def piece(self, piece: Piece) -> bytes:
        said = b""
        logprobs = self._logprobs([piece])
        if piece.text or logprobs:
            said = event(self._envelope.of([_choice({"content": piece.text}, logprobs=logprobs)]))
        if piece.end is None:
            return said
        for index, call in enumerate(piece.end.calls):
            said += event(self._envelope.of([_choice({"tool_calls": [{"index": index, **_call(call)}]})]))
        said += event(self._envelope.of([_choice({}, finish=piece.end.finish)]))
        if self._has_usage:
            said += event(self._envelope.of([], usage=_usage(piece.end)))
        return said + DONE

    def error(self, error: ApiError) -> bytes:
        return event(error.body) + DONE

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        end = _end(pieces)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        if end.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_call(call) for call in end.calls]
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(pieces), "finish_reason": end.finish}
        return self._envelope.of([choice], usage=_usage(end))

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        """Of every sampled token, those of calls and of the end of the turn included."""
        if not self._has_logprobs:
            return None
        entries: list[dict[str, Any]] = []
        for text, logprob in _tokens(self._dialogue, pieces):
            entries.append({"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
        return {"content": entries, "refusal": None} if entries else None


class TextReply:
    """`text_completion`, streamed or whole."""

    def __init__(
        self, dialogue: Dialogue, *, model: str, conversation: str, has_logprobs: bool, has_usage: bool
    ) -> None:
        self._envelope = _Envelope("text_completion", "cmpl", model=model, conversation=conversation)
        self._dialogue = dialogue
        self._has_logprobs = has_logprobs
        self._has_usage = has_usage

    def begin(self) -> bytes:
        return b""

    def piece(self, piece: Piece) -> bytes:
        finish = None if piece.end is None else piece.end.finish
        said = event(self._envelope.of([self._choice([piece], finish)]))
        if piece.end is None:
            return said
        if self._has_usage:
            said += event(self._envelope.of([], usage=_usage(piece.end)))
        return said + DONE

    def error(self, error: ApiError) -> bytes:
        return event(error.body) + DONE

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        end = _end(pieces)
        return self._envelope.of([self._choice(pieces, end.finish)], usage=_usage(end))

    def _choice(self, pieces: Sequence[Piece], finish: str | None) -> dict[str, Any]:
        logprobs = None
        if self._has_logprobs:
            tokens = _tokens(self._dialogue, pieces)
            logprobs = {"tokens": [t for t, _ in tokens], "token_logprobs": [p for _, p in tokens]}
        text = "".join(piece.text for piece in pieces)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _choice(delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _call(call: CallSaid) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _usage(end: TurnEnd) -> dict[str, Any]:
    return {
        "prompt_tokens": end.num_prompt_tokens,
        "completion_tokens": end.num_sampled_tokens,
        "total_tokens": end.num_prompt_tokens + end.num_sampled_tokens,
        "prompt_tokens_details": {"cached_tokens": end.num_cached_tokens},
    }


def _tokens(dialogue: Dialogue, pieces: Sequence[Piece]) -> list[tuple[str, float]]:
    return [
        (dialogue.renderer.text([token]), logprob)
        for piece in pieces
        for token, logprob in zip(piece.token_ids.tolist(), piece.logprobs.tolist(), strict=True)
    ]


def _end(pieces: Sequence[Piece]) -> TurnEnd:
    end = pieces[-1].end
    assert end is not None, "the last piece has an end"
    return end
