"""Anthropic's messages: the same turns in another protocol."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from msgspec import Meta

from actors.gateway.errors import ApiError, refused
from actors.gateway.openai_request import MAX_STOPS, Count, TopP
from actors.gateway.said import CallSaid, Message, TurnAsked, Wishes
from actors.gateway.sse import event
from actors.gateway.turn import Piece, TurnEnd
from engine.types import ToolSpec

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Block(msgspec.Struct):
    """Of a message's content: text, what a tool was asked, or what it said."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    tool_use_id: str = ""
    content: "str | list[Block]" = ""
    is_error: bool = False


class MessageSaid(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class ToolOffered(msgspec.Struct):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    input_schema: dict[str, Any]
    description: str = ""


class UserOf(msgspec.Struct):
    user_id: str | None = None


class MessagesRequest(msgspec.Struct, kw_only=True):
    """`POST /v1/messages`."""

    model: str = "policy"
    max_tokens: Count
    messages: Annotated[list[MessageSaid], Meta(min_length=1)]
    system: str | list[Block] = ""
    tools: list[ToolOffered] = []
    tool_choice: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: TopP | None = None
    top_k: int | None = None
    stop_sequences: list[str] = []
    stream: bool | None = None
    metadata: UserOf | None = None

    def asked(self, *, max_messages: int) -> TurnAsked:
        """Raises `ApiError` for what cannot be answered."""
        choice = (self.tool_choice or {}).get("type", "auto")
        if choice not in ("auto", "none"):
            raise refused("tool_choice must be auto or none: nothing forces the policy", param="tool_choice")
        if self.top_k is not None:
            raise refused("top_k is not supported: it is not what the policy samples from", param="top_k")
        if len(self.stop_sequences) > MAX_STOPS or not all(self.stop_sequences):
            raise refused(f"{MAX_STOPS} stop sequences at most, none of them empty", param="stop_sequences")
        if len(self.messages) > max_messages:
            raise refused(f"{len(self.messages)} messages, {max_messages} are allowed", param="messages")
        if self.messages[-1].role == "assistant":
            raise refused("the last message is the assistant's: there is nothing to answer", param="messages")
        system = [Message(role="system", content=_text(self.system))] if self.system else []
        wishes = Wishes(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop_sequences),
        )
        return TurnAsked(
            messages=(*system, *(said for message in self.messages for said in _messages(message))),
            tools=tuple(
                ToolSpec(name=tool.name, description=tool.description, parameters=tool.input_schema)
                for tool in self.tools
            ),
            may_call=choice != "none",
            wishes=wishes,
            scope=(self.metadata and self.metadata.user_id) or "",
        )


MESSAGES: msgspec.json.Decoder[MessagesRequest] = msgspec.json.Decoder(MessagesRequest)


class AnthropicReply:
    """A `message`, or the events of its stream: a block of text first, then one for each call."""

    def __init__(self, *, model: str, conversation: str) -> None:
        self._head = {
            "id": f"msg_{uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "conversation_id": conversation,
        }

    def begin(self) -> bytes:
        usage = {"input_tokens": 0, "output_tokens": 0}
        message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        text = {"type": "text", "text": ""}
        return _event("message_start", message=message) + _event("content_block_start", index=0, content_block=text)

    def piece(self, piece: Piece) -> bytes:
        said = b""
        if piece.text:
            delta = {"type": "text_delta", "text": piece.text}
            said = _event("content_block_delta", index=0, delta=delta)
        if piece.end is None:
            return said
        said += _event("content_block_stop", index=0)
        for index, call in enumerate(piece.end.calls, start=1):
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            said += _event("content_block_start", index=index, content_block=block)
            said += _event("content_block_delta", index=index, delta=delta)
            said += _event("content_block_stop", index=index)
        delta = {"stop_reason": _REASONS[piece.end.finish], "stop_sequence": None}
        return said + _event("message_delta", delta=delta, usage=_usage(piece.end)) + _event("message_stop")

    def error(self, error: ApiError) -> bytes:
        return event(anthropic_error(error), name="error")

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        end = pieces[-1].end
        assert end is not None, "the last piece has an end"
        text = "".join(piece.text for piece in pieces)
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        content += [_use(call) for call in end.calls]
        stop = {"stop_reason": _REASONS[end.finish], "stop_sequence": None}
        return {**self._head, "content": content, **stop, "usage": _usage(end)}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """An error in the form of this protocol."""
    kind = "api_error" if error.status >= 500 else error.kind
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def _messages(message: MessageSaid) -> list[Message]:
    """Tool results are messages of their own here, in front of what the user says beside them."""
    if isinstance(message.content, str):
        return [Message(role=message.role, content=message.content)]
    results, text, calls = list[Message](), list[str](), list[CallSaid]()
    for block in message.content:
        match block.type:
            case "text":
                text.append(block.text)
            case "tool_result":
                results.append(
                    Message(
                        role="tool", content=_text(block.content), call_id=block.tool_use_id, is_error=block.is_error
                    )
                )
            case "tool_use":
                arguments = msgspec.json.encode(block.input).decode()
                calls.append(CallSaid(id=block.id, name=block.name, arguments=arguments))
            case "thinking" | "redacted_thinking":
                pass
            case strange:
                raise refused(f"content of type {strange!r} cannot be read, only text and tools", param="messages")
    if text or calls or not results:
        return [*results, Message(role=message.role, content="".join(text), calls=tuple(calls))]
    return results


def _text(content: str | list[Block]) -> str:
    if isinstance(content, str):
        return content
    if strange := [block.type for block in content if block.type != "text"]:
        raise refused(f"content of type {strange[0]!r} cannot be read, only text", param="messages")
    return "".join(block.text for block in content)


def _use(call: CallSaid) -> dict[str, Any]:
    arguments: Any = msgspec.json.decode(call.arguments)
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _usage(end: TurnEnd) -> dict[str, int]:
    return {
        "input_tokens": end.num_prompt_tokens - end.num_cached_tokens,
        "output_tokens": end.num_sampled_tokens,
        "cache_read_input_tokens": end.num_cached_tokens,
    }


def _event(kind: str, **content: Any) -> bytes:
    return event({"type": kind, **content}, name=kind)
