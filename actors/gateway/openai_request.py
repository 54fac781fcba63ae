"""OpenAI's requests, read and checked; what cannot be honoured is refused, rather than ignored in silence."""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from actors.gateway.errors import refused
from actors.gateway.said import CallSaid, Message, TurnAsked, Wishes
from engine.types import ToolSpec

T = TypeVar("T")

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
MAX_STOPS = 4


class Part(msgspec.Struct):
    """Of a message whose content is a list."""

    type: str
    text: str = ""


class FunctionSaid(msgspec.Struct):
    name: str
    arguments: str


class CallPart(msgspec.Struct):
    id: str
    function: FunctionSaid
    type: str = "function"


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[CallPart] | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolPart(msgspec.Struct):
    type: Literal["function"]
    function: Function


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Sampled(msgspec.Struct, kw_only=True):
    """What both endpoints take."""

    model: str = "policy"
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def wishes(self) -> Wishes:
        """Raises `ApiError` for what no policy here can do."""
        if self.n not in (None, 1):
            raise refused("n must be 1: ask again, or fork the conversation", param="n")
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise refused(f"{name} is not supported: it is not what the policy samples from", param=name)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS or not all(stops):
            raise refused(f"stop takes {MAX_STOPS} strings at most, none of them empty", param="stop")
        return Wishes(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(stops),
            seed=None if self.seed is None else self.seed % 2**31,
        )

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def conversation(self) -> str | None:
        """The id that the client gives the conversation in its metadata."""
        return (self.metadata or {}).get("conversation_id")


class ChatRequest(Sampled, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: list[ToolPart] | None = None
    tool_choice: str | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None

    def asked(self, *, max_messages: int) -> TurnAsked:
        """Raises `ApiError` for what cannot be answered."""
        if self.top_logprobs:
            raise refused("top_logprobs is not supported: logprobs are those of sampled tokens", param="top_logprobs")
        if (self.response_format or {}).get("type", "text") != "text":
            raise refused("only text can be promised", param="response_format")
        if self.tool_choice not in (None, "auto", "none"):
            raise refused("tool_choice must be auto or none: nothing forces the policy", param="tool_choice")
        if len(self.messages) > max_messages:
            raise refused(f"{len(self.messages)} messages, {max_messages} are allowed", param="messages")
        if self.messages[-1].role == "assistant":
            raise refused("the last message is the assistant's: there is nothing to answer", param="messages")
        wishes = self.wishes
        return TurnAsked(
            messages=tuple(_message(message) for message in self.messages),
            tools=tuple(_spec(tool.function) for tool in self.tools or ()),
            may_call=self.tool_choice != "none",
            wishes=msgspec.structs.replace(wishes, max_tokens=self.max_completion_tokens or wishes.max_tokens),
            scope=self.user or "",
            conversation=self.conversation,
        )


class TextRequest(Sampled, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def asked(self, *, max_messages: int) -> TurnAsked:
        """Raises `ApiError` for what cannot be answered."""
        del max_messages
        if self.echo or self.suffix or self.best_of not in (None, 1):
            raise refused("echo, suffix and best_of are not supported")
        if self.logprobs and self.logprobs > 1:
            raise refused("logprobs must be 1: those of sampled tokens", param="logprobs")
        if not self.prompt:
            raise refused("the prompt is empty", param="prompt")
        return TurnAsked(text=self.prompt, wishes=self.wishes, scope=self.user or "", conversation=self.conversation)


CHAT: msgspec.json.Decoder[ChatRequest] = msgspec.json.Decoder(ChatRequest)
TEXT: msgspec.json.Decoder[TextRequest] = msgspec.json.Decoder(TextRequest)


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A request. Raises `ApiError` 400 that names the place of what is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        raise refused(message, param=place.strip("`.") or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise refused("the body is no JSON") from None


def _message(message: ChatMessage) -> Message:
    content = message.content
    if isinstance(content, list):
        if strange := [part.type for part in content if part.type not in ("text", "input_text", "refusal")]:
            raise refused(f"content of type {strange[0]!r} cannot be read, only text", param="messages")
        content = "".join(part.text for part in content)
    calls = [CallSaid(id=c.id, name=c.function.name, arguments=c.function.arguments) for c in message.tool_calls or ()]
    if message.role == "tool" and not message.tool_call_id:
        raise refused("a tool message needs its tool_call_id", param="messages")
    role = "system" if message.role == "developer" else message.role
    return Message(role=role, content=content or "", calls=tuple(calls), call_id=message.tool_call_id or "")


def _spec(function: Function) -> ToolSpec:
    parameters = function.parameters or {"type": "object", "properties": {}}
    return ToolSpec(name=function.name, description=function.description or "", parameters=parameters)
