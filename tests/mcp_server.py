"""An MCP server for tests: tools that add, fail, hang and die. `python mcp_server.py [HTTP port]`."""

import os
import sys
from typing import Literal

import anyio
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

server = MCPServer("tests")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int = 1) -> str:
    """Add two
    numbers."""
    return f"{a + b} in process {os.getpid()}"


@server.tool()
def fail(reason: str) -> str:
    """Fail."""
    raise ToolError(reason)


@server.tool()
async def hang() -> str:
    """Wait for ever."""
    await anyio.sleep_forever()
    return ""


@server.tool()
def die(how: Literal["now"] = "now") -> str:
    """End the server."""
    os._exit(3)


@server.tool()
def draw() -> list[str | Image]:
    """A text and a picture."""
    return ["a picture:", Image(data=b"png", format="png")]


if __name__ == "__main__":
    sys.stderr.write("the server says hello\n")
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
