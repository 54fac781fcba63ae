"""Results that are used again: by tool, version and canonical arguments, and by the path's calls where those matter."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from engine.types import ToolCall
from tools.schema import Tool

_encoder = msgspec.json.Encoder(order="deterministic")


class CallCache(Protocol):
    """Texts of good results by key. It may forget whatever it likes, whenever it likes."""

    async def get(self, key: bytes) -> str | None: ...

    async def put(self, key: bytes, text: str) -> None: ...

    async def aclose(self) -> None: ...


def call_key(tool: Tool, arguments: Mapping[str, Any], *, history: Sequence[ToolCall] = ()) -> bytes | None:
    """What stands for equal calls; None for a tool whose results are not used again, or arguments without a JSON form.

    `arguments` are checked ones, so that "3" and 3, or a default and its absence, are equal. The order of keys does
    not matter; that of `history` does.
    """
    if not tool.is_pure and not tool.depends_on_history:
        return None
    past = [] if tool.is_pure else [(call.name, call.arguments) for call in history if not call.malformed]
    try:
        named = _encoder.encode([tool.name, tool.version, arguments, past])
    except (TypeError, UnicodeEncodeError):  # a type of the tool's own, or half a character
        return None
    return hashlib.blake2b(named, digest_size=16).digest()


class MemoryCache:
    """The texts used last, as many as fit into `max_bytes` of UTF-8.

    >>> cache = MemoryCache(max_bytes=5)
    >>> cache.keep(b"1", "abc"); cache.keep(b"2", "de"); cache.look(b"1"); cache.keep(b"3", "f"); cache.look(b"2")
    'abc'
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self._num_bytes = 0

    def look(self, key: bytes) -> str | None:
        if key in self._texts:
            self._texts.move_to_end(key)
        return self._texts.get(key)

    def keep(self, key: bytes, text: str) -> None:
        """A text that alone is too large is not kept."""
        self._num_bytes -= _size(self._texts.pop(key, ""))
        if _size(text) > self._max_bytes:
            return
        self._num_bytes += _size(text)
        self._texts[key] = text
        while self._num_bytes > self._max_bytes:
            _, oldest = self._texts.popitem(last=False)
            self._num_bytes -= _size(oldest)

    async def get(self, key: bytes) -> str | None:
        return self.look(key)

    async def put(self, key: bytes, text: str) -> None:
        self.keep(key, text)

    async def aclose(self) -> None:
        """Nothing to end."""


class TieredCache:
    """Caches in a row, the nearest first: what a farther one knows, the nearer ones learn."""

    def __init__(self, tiers: Sequence[CallCache]) -> None:
        self._tiers = tiers

    async def get(self, key: bytes) -> str | None:
        for depth, tier in enumerate(self._tiers):
            text = await tier.get(key)
            if text is not None:
                for nearer in self._tiers[:depth]:
                    await nearer.put(key, text)
                return text
        return None

    async def put(self, key: bytes, text: str) -> None:
        for tier in self._tiers:
            await tier.put(key, text)

    async def aclose(self) -> None:
        for tier in self._tiers:
            await tier.aclose()


class ImportedCache:
    """Results that were written down before the run; nothing is added, nothing forgotten."""

    def __init__(self, texts: Mapping[bytes, str]) -> None:
        self._texts = texts

    async def get(self, key: bytes) -> str | None:
        return self._texts.get(key)

    async def put(self, key: bytes, text: str) -> None:
        """Not added: what is new belongs to the other tiers."""

    async def aclose(self) -> None:
        """Nothing to end."""


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
