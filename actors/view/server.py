"""Server: the page of a run over HTTP, kept up to date while it lives.

    journal -> follow (a thread, every `POLL_S`) -> RunView -> /api/stream (one event a change) -> page

| a task     | waits for                          | unblocked by                                |
|------------|------------------------------------|---------------------------------------------|
| follow     | the journal to grow                | `POLL_S`                                    |
| a stream   | something new                      | follow, or `BEAT_S`; its client going away  |
| a tree     | its events to be read              | the disk                                    |

Who can reach it sees everything a run said, so it answers loopback alone unless there is a token; and by its own
name alone, so that no page of another site reads it through a browser.
"""

import asyncio
import contextlib
import hashlib
import hmac
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from actors.view.page import live_page, policy
from actors.view.run_view import RunView
from engine.errors import ConfigError, JournalError
from engine.loopback import is_loopback, names_loopback

POLL_S = 0.5
BEAT_S = 2.0
"""An event at least this often, so that a page knows how long a run has been quiet, and that we are there."""
BATCH = 4_000
"""Events that are folded before anybody is shown them."""
MIN_TOKEN = 16
SHUTDOWN_S = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WatchServer:
    """The routes. `async with server.listening() as url: await server.follow()`."""

    def __init__(self, view: RunView, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        """Raises `ConfigError` for a host that others can reach without a token of some length."""
        if token is None and not is_loopback(host):
            raise ConfigError(f"{host} can be reached by others: a token is needed - at $ARPO_WATCH_TOKEN")
        if token is not None and (len(token) < MIN_TOKEN or not token.isascii()):
            raise ConfigError(f"a token has {MIN_TOKEN} ASCII characters at least - at $ARPO_WATCH_TOKEN")
        self._view = view
        self._host = host
        self._port = port
        self._token = token
        # Cookies know no ports, so two servers of one host must not have one name.
        self._cookie = f"arpo_{hashlib.blake2b((token or '').encode(), digest_size=4).hexdigest()}"
        self._news = asyncio.Condition()
        self._is_closing = False

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str, None]:
        """Serve for the length of the block; the value is the address to open. Raises `ConfigError` for a port that is
        taken."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/api/state", self._state),
                web.get("/api/stream", self._stream),
                web.get("/api/settings", self._settings),
                web.get("/api/trees/{name}", self._tree),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            try:
                await site.start()
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ConfigError(f"{self._host}:{self._port}: {reason} - at --port") from None
            host, port = runner.addresses[0][:2]
            if host in ("0.0.0.0", "::"):  # an address to listen on, and none to open
                host = socket.gethostname()
            url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
            yield url if self._token is None else f"{url}?token={self._token}"
        finally:
            self._is_closing = True
            await runner.cleanup()

    async def follow(self) -> None:
        """Read on in the journal until cancelled; pages are told only while this runs."""
        while True:
            num_events = await asyncio.to_thread(self._view.refresh, max_events=BATCH)
            if num_events:
                async with self._news:
                    self._news.notify_all()
            if num_events < BATCH:
                await asyncio.sleep(POLL_S)

    # -- who may ask ------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._token is None and not names_loopback(request.host):
            return _refused(403, "this server answers to its own name alone, or to all with ARPO_WATCH_TOKEN set")
        given = request.query.get("token")
        if self._token is not None and not self._knows(given) and not self._knows(request.cookies.get(self._cookie)):
            return _refused(401, "a token is needed: open the address that `arpo watch` printed")
        if self._token is not None and given is not None and request.path == "/":
            # Out of the address, and so out of histories and screenshots. Lax: the link may stand on another site.
            found = web.Response(status=302, headers={"Location": "/"})
            found.set_cookie(self._cookie, self._token, httponly=True, samesite="Lax")
            return _protected(found)
        return await handler(request)

    def _knows(self, given: str | None) -> bool:
        return self._token is not None and hmac.compare_digest(self._token.encode(), (given or "").encode())

    # -- answers ----------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.Response:
        del request
        response = web.Response(text=live_page(title=self._view.run.path.name), content_type="text/html")
        response.headers["Content-Security-Policy"] = f"{policy(connects=True)}; frame-ancestors 'none'"
        return _protected(response)

    async def _state(self, request: web.Request) -> web.Response:
        del request
        return _json(await asyncio.to_thread(self._view.changes))

    async def _settings(self, request: web.Request) -> web.Response:
        del request
        return _json(self._view.settings())

    async def _tree(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            document = await asyncio.to_thread(self._view.document, name)
        except JournalError as error:
            return _refused(410, str(error))
        if document is None:
            return _refused(404, f"no tree {name}")
        note = self._view.texts.note
        return _json({"document": document, "texts_note": note})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        cursor = request.headers.get("Last-Event-ID") or request.query.get("since", "")
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not self._is_closing:
                changes = await asyncio.to_thread(self._view.changes, cursor)
                cursor = str(changes["cursor"])
                await response.write(b"id: %b\ndata: %b\n\n" % (cursor.encode(), msgspec.json.encode(changes)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S), self._news:
                        await self._news.wait()
                await asyncio.sleep(POLL_S)  # so that a busy run is told of twice a second, and not with each event
        return response


def _json(content: object) -> web.Response:
    return _protected(web.Response(body=msgspec.json.encode(content), content_type="application/json"))


def _refused(status: int, why: str) -> web.Response:
    return _protected(web.Response(status=status, text=f"{why}\n"))


def _protected(response: web.Response) -> web.Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response
