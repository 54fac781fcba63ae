"""SglangHttp: SGLang's HTTP interface; every way in which it can fail becomes an error of our tree.

no connection, a connection that broke    GeneratorLostError
400 to a generation                       RequestRefusedError
404                                       GeneratorError: the version lacks the endpoint
401, 5xx, `success: false`, no JSON       GeneratorError
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Self
from weakref import WeakSet

import msgspec

from engine.errors import GeneratorError, GeneratorLostError, RequestRefusedError

NEEDED = "0.5.21"
"""The oldest SGLang whose interface this speaks."""
KEEP_ALIVE_S = 1.0
_SEPARATOR = b"\n\n"
_DATA = b"data: "
_DONE = b"[DONE]"


class SglangHttp:
    """One server. `async with SglangHttp(url, ...) as http`; calls outside of that are errors of the caller."""

    def __init__(self, url: str, *, timeout_s: float, api_key: str | None = None) -> None:
        """`timeout_s` is for connecting, and for whole calls that set no other; a stream has no limit of its own."""
        import aiohttp

        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._connecting = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s)
        # A broken connection and a refused one, and aiohttp's RuntimeError for one that we have closed under a request;
        # whatever else aiohttp raises is a dialect we do not speak.
        closed = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError, RuntimeError)
        self._lost = (*closed, TimeoutError)
        self._foreign = aiohttp.ClientError
        self._under_way: WeakSet[aiohttp.ClientResponse] = WeakSet()
        """Streams that are being read; one that was read matters to nobody."""

    async def __aenter__(self) -> Self:
        import aiohttp

        # As many connections as requests: the server batches what is in flight. Idle ones are given up before the
        # server, after 5 s, closes them under a request that would then look lost.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=self._connecting,
            cookie_jar=aiohttp.DummyCookieJar(),  # such servers set none, and looking for some takes its time
            json_serialize=lambda body: msgspec.json.encode(body).decode(),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        import aiohttp

        # aiohttp closes their connections, and leaves whoever reads waiting for ever.
        for response in self._under_way:
            response.content.set_exception(aiohttp.ClientConnectionError("this client was closed"))
        await self._session.close()

    async def is_up(self, path: str) -> bool:
        """Whether somebody answers there, and with 200."""
        try:
            async with asyncio.timeout(self._timeout_s), self._session.get(self.url + path) as response:
                return response.status == 200
        except (*self._lost, self._foreign):
            return False

    async def ping(self, path: str, *, timeout_s: float) -> None:
        """Raise `GeneratorLostError` where nobody answers there; what the answer says does not matter."""
        try:
            await self._call("GET", path, None, timeout_s=timeout_s)
        except GeneratorLostError:
            raise
        except GeneratorError:
            pass

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON answer to a GET."""
        return self._json(path, await self._call("GET", path, None, timeout_s=self._timeout_s))

    async def tell(self, path: str, body: dict[str, Any], *, timeout_s: float | None = None) -> None:
        """A POST whose answer says nothing."""
        await self._call("POST", path, body, timeout_s=timeout_s or self._timeout_s)

    async def post(self, path: str, body: dict[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """The JSON answer to a POST; an answer that says `success: false` is an error."""
        answer = self._json(path, await self._call("POST", path, body, timeout_s=timeout_s or self._timeout_s))
        if answer.get("success") is False:
            raise GeneratorError(f"{self.url}{path}: {answer.get('message', 'no reason given')}")
        return answer

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The events of a server-sent stream, each one JSON. Closing it early closes the connection, and reading it to
        its end leaves the connection for another call."""
        try:
            async with self._session.post(self.url + path, json=body) as response:
                self._under_way.add(response)
                if response.status != 200:
                    raise self._refusal(path, response.status, await response.read())
                buffer = bytearray()
                is_done = False
                async for piece in response.content.iter_any():
                    buffer += piece
                    while (end := buffer.find(_SEPARATOR)) >= 0:
                        event = bytes(buffer[:end])
                        del buffer[: end + len(_SEPARATOR)]
                        is_done |= event == _DATA + _DONE
                        if event.startswith(_DATA) and not is_done:
                            yield event[len(_DATA) :]
                if is_done:
                    return
        except self._lost as error:
            raise self._loss(path, error, timeout_s=self._timeout_s) from error
        except self._foreign as error:
            raise GeneratorError(f"{self.url}{path}: {error}") from error
        raise GeneratorLostError(f"{self.url}{path}: the stream ended before its end")

    async def _call(self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float) -> bytes:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(method, self.url + path, json=body) as response,
            ):
                payload = await response.read()
        except self._lost as error:
            raise self._loss(path, error, timeout_s=timeout_s) from error
        except self._foreign as error:
            raise GeneratorError(f"{self.url}{path}: {error}") from error
        if response.status != 200:
            raise self._refusal(path, response.status, payload)
        return payload

    def _json(self, path: str, payload: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise GeneratorError(f"{self.url}{path}: no JSON object, but {_shown(payload)}") from None

    def _loss(self, path: str, error: BaseException, *, timeout_s: float) -> GeneratorLostError:
        reason = _in_one_line(str(error)) or type(error).__name__
        if isinstance(error, TimeoutError):
            reason = f"no answer within {timeout_s:g} s"
        return GeneratorLostError(f"{self.url}{path}: {reason}")

    def _refusal(self, path: str, status: int, payload: bytes) -> GeneratorError:
        if status == 404:
            return GeneratorError(f"{self.url}{path}: there is no such endpoint; SGLang {NEEDED} or newer is needed")
        kind = RequestRefusedError if (status, path) == (400, "/generate") else GeneratorError
        return kind(f"{self.url}{path}: {status}: {_shown(payload)}")


def _shown(payload: bytes) -> str:
    """What a server said, short enough for one line: the message where there is one."""
    try:
        raw = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raw = None
    for key in ("error", "message", "detail"):
        if isinstance(raw, dict) and key in raw:
            raw = raw[key]  # pyright: ignore[reportUnknownVariableType]
    text = raw if isinstance(raw, str) else payload.decode(errors="replace")
    return _in_one_line(text)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:300]
