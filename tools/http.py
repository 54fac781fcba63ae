"""HTTP out: one request, with bounds on what comes back, and errors that say whose fault it was. The door to `aiohttp`.

| what comes back                    | becomes                                                             |
|------------------------------------|---------------------------------------------------------------------|
| no connection, a torn answer       | `UnavailableError`: worth another try                               |
| 429, 502, 503, 504, 500            | `UnavailableError`, with what `Retry-After` asks for                |
| another status from 400 on         | `ToolError` with the first line of the body                         |
| an address that may not be reached | `ToolError`                                                         |

There is no deadline in here: the executor's cancels.
"""

import contextlib
import socket
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from engine.errors import ToolError
from tools.addresses import AddressRule, ForbiddenAddressError
from tools.schema import UnavailableError

if TYPE_CHECKING:
    import aiohttp

DEFAULT_MAX_BYTES = 4 << 20
USER_AGENT = "arpo-engine"
_JSON = {"Content-Type": "application/json"}
_OVERLOADED = (429, 500, 502, 503, 504)
_MAX_WORD_CHARS = 200
_MAX_RETRY_AFTER_S = 60.0
_KEPT_S = 3.0
"""How long an idle connection is kept: less than usual servers do, which else close it under a request."""


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """What to ask for."""

    url: str
    method: str = "GET"
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    json: Any = None
    """The body, where it is not None."""
    max_redirects: int = 0
    """More are an error; 0 for interfaces, which have no reason to redirect."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Of the answer's body, behind decompression; what is beyond is not read."""


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """What came back, with a status below 400."""

    status: int
    url: str
    """Behind redirects."""
    content_type: str
    charset: str
    body: bytes
    is_cut: bool = False

    @property
    def text(self) -> str:
        try:
            return self.body.decode(self.charset, "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Raises `UnavailableError` for what is no JSON: a proxy's page rather than the interface's answer."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise UnavailableError(f"{_place(self.url)}: no JSON came back: {_first_line(self.text)}") from None


class Http(Protocol):
    """The seam to the network. `HttpClient` is the real one; against it, tests run servers of their own."""

    async def send(self, request: HttpRequest) -> HttpAnswer: ...

    async def aclose(self) -> None: ...


class HttpClient:
    """`Http` over aiohttp: connections are kept and reused; opened when first used, since that needs a running loop."""

    def __init__(self, *, rule: AddressRule | None = None, max_connections: int = 100) -> None:
        """`rule` says what a connection may go to, at each redirect anew; None lets it go anywhere."""
        self._rule = rule
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: HttpRequest) -> HttpAnswer:
        """See the table above."""
        async with self._response(request) as response:
            body = await _read(response, max_bytes=request.max_bytes + 1)
            url = str(response.url)
            answer = HttpAnswer(
                status=response.status,
                url=url,
                content_type=response.content_type,
                charset=response.charset or "utf-8",
                body=body[: request.max_bytes],
                is_cut=len(body) > request.max_bytes,
            )
            _raise_for(answer, retry_after=response.headers.get("Retry-After", ""))
            return answer

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @contextlib.asynccontextmanager
    async def _response(self, request: HttpRequest) -> "AsyncGenerator[aiohttp.ClientResponse]":
        import aiohttp

        place = _place(request.url)
        try:
            async with self._open().request(
                request.method,
                request.url,
                params=dict(request.query) or None,
                headers={**_JSON, **request.headers} if request.json is not None else request.headers,
                data=None if request.json is None else msgspec.json.encode(request.json),
                allow_redirects=request.max_redirects > 0,
                max_redirects=request.max_redirects + 1,
            ) as response:
                if response.status in (301, 302, 303, 307, 308):
                    raise ToolError(f"{place}: redirects to {response.headers.get('Location', 'nowhere')}")
                yield response
        except aiohttp.TooManyRedirects:
            raise ToolError(f"{place}: redirects more than {request.max_redirects} times") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise ToolError(f"{place}: no address of the web") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ForbiddenAddressError) or "not a public address" in str(error.os_error):
                raise ToolError(f"{place}: not allowed: {error.os_error}") from None
            raise UnavailableError(f"{place}: {error.os_error.strerror or error.os_error}") from None
        except aiohttp.ClientError as error:
            raise UnavailableError(f"{place}: {type(error).__name__}: {_first_line(str(error))}") from None

    def _open(self) -> "aiohttp.ClientSession":
        if self._session is None:
            import aiohttp

            connector = aiohttp.TCPConnector(
                limit=self._max_connections, keepalive_timeout=_KEPT_S, socket_factory=self._socket
            )
            # Deadlines are the executor's; no cookies, so that no call sees traces of another one.
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
                trust_env=False,
            )
        return self._session

    def _socket(self, info: "tuple[Any, Any, int, str, tuple[Any, ...]]") -> socket.socket:
        """Made for the very address that is connected to, so nothing can change between the check and the use."""
        family, kind, protocol, _, address = info
        if self._rule is not None:
            self._rule.check(str(address[0]))
        return socket.socket(family, kind, protocol)


async def _read(response: "aiohttp.ClientResponse", *, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= max_bytes:
            # What is left in the connection is somebody else's answer no longer worth reading.
            response.close()
            break
    return bytes(body[:max_bytes])


def _raise_for(answer: HttpAnswer, *, retry_after: str) -> None:
    if answer.status < 400:
        return
    message = f"{_place(answer.url)}: status {answer.status}: {_first_line(answer.text)}"
    if answer.status in _OVERLOADED:
        asked_s = float(retry_after) if retry_after.isdecimal() else 0.0
        raise UnavailableError(message, retry_after_s=min(asked_s, _MAX_RETRY_AFTER_S))
    raise ToolError(message)


def _place(url: str) -> str:
    """A URL without its query, which may hold a key."""
    return url.partition("?")[0][:_MAX_WORD_CHARS]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "nothing")[:_MAX_WORD_CHARS]
