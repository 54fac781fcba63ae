"""ChatEndpoint: one question to an OpenAI-compatible server, one answer; what can go wrong is told by who can help.

no connection, timeout, 408, 429, 5xx    EndpointBusyError: trying again may help
401, 403, 404                            ConfigError: address, key or model are wrong, whatever is asked
another status, or no answer in it       ToolError: of this question, and not of the next one
"""

import os
from collections.abc import Sequence
from typing import Any, Self

import msgspec

from engine.errors import ConfigError, ToolError

_BUSY = frozenset({408, 425, 429})
_WRONG = frozenset({401, 403, 404})
_SHOWN = 200
"""Characters of a server's answer that an error quotes."""


class EndpointBusyError(ToolError):
    """The server did not answer this time. `retry_after_s` is what it asked for, 0 where it asked for nothing."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class ChatEndpoint:
    """`async with ChatEndpoint(url, model=...) as endpoint`; calls outside of that are errors of the caller.

    `url` ends where `/chat/completions` begins, in `/v1` as a rule. The key comes from the environment variable
    `key_variable` and from nowhere else; without it, requests carry none.
    """

    def __init__(self, url: str, *, model: str, key_variable: str, timeout_s: float, max_tokens: int) -> None:
        self.url = url.rstrip("/") + "/chat/completions"
        self._body: dict[str, Any] = {"model": model, "temperature": 0.0, "max_tokens": max_tokens}
        self._key = os.environ.get(key_variable)
        self._key_variable = key_variable
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.url!r}, model={self._body['model']!r}, key={'***' if self._key else None})"

    async def __aenter__(self) -> Self:
        import aiohttp

        # The caller bounds how much is in flight.
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)
        self._lost = (aiohttp.ClientError, TimeoutError, ConnectionError)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def complete(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of the answer. Raises `EndpointBusyError`, `ConfigError` or `ToolError`."""
        try:
            async with self._session.post(self.url, json={**self._body, "messages": list(messages)}) as response:
                payload = await response.read()
                status, retry_after = response.status, response.headers.get("Retry-After", "")
        except TimeoutError:
            raise EndpointBusyError(f"{self.url}: no answer within {self._timeout_s:g} s") from None
        except self._lost as error:
            raise EndpointBusyError(f"{self.url}: {type(error).__name__}: {error}") from error
        if status != 200:
            raise self._refusal(status, payload, retry_after)
        try:
            text = msgspec.json.decode(payload, type=_Answer).choices[0].message.content
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            raise ToolError(f"{self.url}: no chat completion: {error}: {_quoted(payload)}") from None
        return text or ""

    def _refusal(self, status: int, payload: bytes, retry_after: str) -> Exception:
        message = f"{self.url}: HTTP {status}: {_quoted(payload)}"
        if status in _BUSY or status >= 500:
            return EndpointBusyError(message, retry_after_s=float(retry_after) if retry_after.isdecimal() else 0.0)
        if status in _WRONG:
            key = "" if self._key else f" (there is no {self._key_variable} in the environment)"
            return ConfigError(f"{message}{key} - at $.eval.judge")
        return ToolError(message)


def _quoted(payload: bytes) -> str:
    return " ".join(payload[:_SHOWN].decode(errors="replace").split())
