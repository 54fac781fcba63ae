"""A connection to an MCP server, over stdio or HTTP: opened when needed, anew when lost. The door to `mcp`.

The SDK wants its connection opened and closed by one task: `hold` is that task, and calls come from all others.

| who    | waits for                         | unblocked by                                                  |
|--------|-----------------------------------|---------------------------------------------------------------|
| hold   | the server, then being let go     | `start_timeout_s`; `aclose`, or a call that found it broken   |
| a call | hold to be ready, then the server | the same; the executor's deadline                             |
| aclose | hold to have ended                | the SDK, which kills a server process that does not end       |
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from engine.errors import ArpoError, ConfigError, ToolError, cause
from engine.types import ToolSpec
from tools.keys import bearer
from tools.mcp_config import McpConfig
from tools.schema import UnavailableError

logger = logging.getLogger(__name__)
# What it logs reaches us as an error too.
logging.getLogger("mcp").setLevel(logging.CRITICAL)


@dataclass(frozen=True, kw_only=True)
class ListedTool:
    """A tool as its server describes it."""

    spec: ToolSpec
    is_idempotent: bool
    """The server says so, or that the tool only reads."""


@dataclass(eq=False)
class _Connection:
    ready: "asyncio.Future[Any]"
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


class McpServer:
    """One server and our connection to it."""

    def __init__(self, config: McpConfig) -> None:
        """Raises `ConfigError` for a missing SDK or key; nothing is started yet."""
        check_installed()
        self._config = config
        self._headers = bearer(config.key_env)
        self._current: _Connection | None = None
        self._connections: set[_Connection] = set()

    async def list_tools(self) -> Sequence[ListedTool]:
        """All tools of the server, over a connection of its own. Raises `ConfigError`, one line, where it fails."""
        try:
            async with asyncio.timeout(self._config.start_timeout_s), self._open() as client:
                return await _list(client)
        except TimeoutError:
            raise ConfigError(f"no answer within {self._config.start_timeout_s:g} s") from None
        except Exception as error:  # the SDK raises what its transports raise, in groups
            raise ConfigError(_said(error)) from None

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Call a tool and give its content as text. Raises `ToolError` for what the server calls an error, and
        `UnavailableError` where it is gone: the next call starts it again."""
        from mcp import MCPError

        connection = self._connect()
        try:
            client = await asyncio.shield(connection.ready)
            result = await client.call_tool(name, arguments)
        except MCPError as error:
            if not _is_lost(error):
                raise ToolError(error.message) from None
            self._let_go(connection)
            raise UnavailableError(f"{self._config.name}: {error.message}") from None
        except Exception as error:  # the SDK raises what its transports raise, in groups
            self._let_go(connection)
            raise UnavailableError(f"{self._config.name}: {_said(error)}") from None
        text = "\n".join(_shown(block) for block in result.content)
        if result.is_error:
            raise ToolError(text or "failed without a message")
        return text

    async def aclose(self) -> None:
        """Close the connection and end the server process that was started for it."""
        if self._current is not None:
            self._let_go(self._current)
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _connect(self) -> _Connection:
        if self._current is None:
            connection = _Connection(asyncio.get_running_loop().create_future())
            connection.task = asyncio.create_task(self._hold(connection), name=f"mcp {self._config.name}")
            self._current = connection
            self._connections.add(connection)
        return self._current

    def _let_go(self, connection: _Connection) -> None:
        connection.leave.set()
        if self._current is connection:
            self._current = None

    async def _hold(self, connection: _Connection) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(self._config.start_timeout_s):
                    client = await stack.enter_async_context(self._open())
                connection.ready.set_result(client)
                await connection.leave.wait()
        except Exception as error:  # the SDK raises what its transports raise, in groups
            logger.debug("mcp %s: the connection ended: %s", self._config.name, _said(error))
            if not connection.ready.done():
                connection.ready.set_exception(UnavailableError(_said(error)))
                connection.ready.exception()  # there may be nobody left who waits for it
        finally:
            self._let_go(connection)
            self._connections.discard(connection)

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncGenerator[Any]:
        from mcp import Client, StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client

        async with contextlib.AsyncExitStack() as stack:
            if self._config.url:
                import httpx2

                timeout = httpx2.Timeout(self._config.timeout_s)
                http = await stack.enter_async_context(httpx2.AsyncClient(headers=self._headers, timeout=timeout))
                transport = streamable_http_client(self._config.url, http_client=http)
            else:
                command, *args = self._config.command
                parameters = StdioServerParameters(command=command, args=args, env=dict(self._config.env))
                transport = stdio_client(parameters, errlog=stack.enter_context(_log_file(self._config.log)))
            yield await stack.enter_async_context(Client(transport))


def check_installed() -> None:
    """Raises `ConfigError` where the SDK is missing."""
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise ConfigError("MCP servers need the SDK: pip install 'arpo-engine[mcp]'") from None


def _log_file(path: str) -> TextIO:
    """Where a server's standard error goes. Raises `ConfigError` where it cannot be written."""
    try:
        return open(path or os.devnull, "a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"log {path}: {error.strerror}") from None


async def _list(client: Any) -> Sequence[ListedTool]:
    tools: list[ListedTool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += [_listed(tool) for tool in page.tools]
        cursor = page.next_cursor
        if not cursor:
            return tools


def _listed(tool: Any) -> ListedTool:
    hints = tool.annotations
    description = " ".join((tool.description or tool.name).split())
    schema = {"properties": {}, **tool.input_schema, "type": "object"}
    return ListedTool(
        spec=ToolSpec(name=tool.name, description=description, parameters=schema),
        is_idempotent=hints is not None and bool(hints.idempotent_hint or hints.read_only_hint),
    )


def _shown(block: Any) -> str:
    match block.type:
        case "text":
            return block.text
        case "resource":
            return getattr(block.resource, "text", f"[{block.resource.uri}]")
        case "resource_link":
            return f"[{block.uri}]"
        case kind:
            return f"[{kind}: {getattr(block, 'mime_type', 'unknown')}]"


def _is_lost(error: Any) -> bool:
    from mcp.types import CONNECTION_CLOSED

    return error.code == CONNECTION_CLOSED


def _said(error: BaseException) -> str:
    first = cause(error)
    if isinstance(first, ArpoError):
        return str(first)
    text = str(first).splitlines()[0] if str(first) else "no reason given"
    return f"{type(first).__name__}: {text}"
