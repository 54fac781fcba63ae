"""What a client says, free of any protocol: messages, tools, and how the next turn is to be sampled."""

import hashlib
from collections.abc import Sequence

import msgspec

from engine.types import ToolSpec


class CallSaid(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call as it stands in a client's history."""

    id: str
    name: str
    arguments: str
    """JSON."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a history."""

    role: str
    content: str = ""
    calls: tuple[CallSaid, ...] = ()
    call_id: str = ""
    """Of a `tool` message: the call it answers."""
    is_error: bool = False


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """How the next turn is to be sampled; unset is the gateway's own choice."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


class TurnAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for the turn behind these messages. Produced by the protocols, consumed by the store and by `turn`."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    """A bare prompt instead of messages."""
    tools: tuple[ToolSpec, ...] = ()
    may_call: bool = True
    """False shows calls as the text they are."""
    wishes: Wishes = Wishes()
    scope: str = ""
    """Where the conversation is looked for by its prefix, inside its tenant: the client's `user`."""
    conversation: str | None = None
    """Its id, where the client has one."""

    @property
    def prefixes(self) -> list[bytes]:
        """A digest for each prefix of the history, tools included: equal digests, equal histories."""
        digest = hashlib.blake2b(msgspec.json.encode((self.tools, self.text)), digest_size=16).digest()
        found: list[bytes] = []
        for message in self.messages or (Message(role="text"),):
            digest = extended(digest, message)
            found.append(digest)
        return found


def extended(digest: bytes, message: Message) -> bytes:
    """The digest of a history with one more message.

    What clients change on the way does not count: white space around an assistant's text, the spelling of the JSON of
    a call's arguments.
    """
    calls = [(call.id, call.name, _canonical(call.arguments)) for call in message.calls]
    content = message.content.strip() if message.role == "assistant" else message.content
    said = msgspec.json.encode((message.role, content, calls, message.call_id))
    return hashlib.blake2b(digest + said, digest_size=16).digest()


def last_answers(messages: Sequence[Message]) -> int:
    """How many messages at the front answer tool calls."""
    return next((i for i, message in enumerate(messages) if message.role != "tool"), len(messages))


def _canonical(arguments: str) -> str:
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments), order="deterministic").decode()
    except (msgspec.DecodeError, RecursionError):
        return arguments
