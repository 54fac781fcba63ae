"""Server-sent events: one JSON object each."""

from typing import Any

import msgspec

_ENCODER = msgspec.json.Encoder()


def event(content: Any, *, name: str = "") -> bytes:
    """`data: {...}` and an empty line, under a name where the protocol has one."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, _ENCODER.encode(content))
