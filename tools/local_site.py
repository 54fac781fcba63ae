"""A web site on the loopback interface that answers from a function: a shipped fake for tests and benchmarks.

It speaks just enough HTTP/1.1 for our own client: kept connections, bodies with a length, no chunks going in.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One request as the site saw it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the site says. An object goes out as JSON, text as HTML."""

    content: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Answer = Callable[[Visit], Page | Awaitable[Page]]


class LocalSite:
    """`async with LocalSite(answer) as site: ... site.url`; it keeps every `Visit` in order."""

    def __init__(self, answer: Answer, *, backlog: int = 1024) -> None:
        self._answer = answer
        self._backlog = backlog
        self.visits: list[Visit] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._left = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=self._backlog)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()
        # The handlers of closed connections end in the next turns of the loop.
        while self._writers:
            self._left.clear()
            await self._left.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_one(reader, writer):
                    pass
        finally:
            writer.close()
            self._writers.discard(writer)
            self._left.set()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        parts = urlsplit(target)
        visit = Visit(method=method, path=parts.path, query=dict(parse_qsl(parts.query)), headers=headers, body=body)
        self.visits.append(visit)
        page = self._answer(visit)
        if not isinstance(page, Page):
            page = await page
        writer.write(_encode(page))
        await writer.drain()
        return True


def _encode(page: Page) -> bytes:
    if isinstance(page.content, str):
        kind, body = "text/html; charset=utf-8", page.content.encode("utf-8")
    elif isinstance(page.content, bytes):
        kind, body = "application/octet-stream", page.content
    else:
        kind, body = "application/json", msgspec.json.encode(page.content)
    headers = {"content-type": kind, "content-length": str(len(body))}
    headers |= {name.lower(): value for name, value in page.headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {page.status} Status\r\n{lines}\r\n".encode("latin-1") + body
