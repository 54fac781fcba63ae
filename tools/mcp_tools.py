"""The tools of an MCP server as ours: listed once at the start, so that what a model is told never changes in a run."""

from typing import Any

import msgspec

from engine.errors import ConfigError
from tools.apart import apart
from tools.json_schema import argument_check
from tools.mcp_client import ListedTool, McpServer
from tools.mcp_config import McpConfig
from tools.schema import Tool


def mcp_tools(config: McpConfig) -> list[Tool]:
    """Ask the server what it has, and end it again; it is started once more when a tool is first called.

    Raises `ConfigError`, one line, for a server that cannot be started or reached, a name it does not know, or a
    schema that is none.
    """
    server = McpServer(config)
    listed = {tool.spec.name: tool for tool in apart(server.list_tools)}
    for name in (*config.include, *config.pure):
        if name not in listed:
            raise ConfigError(f"no tool {name!r}; there are: {', '.join(listed) or 'none'}")
    wanted = [listed[name] for name in config.include] or list(listed.values())
    return [_tool(tool, config, server) for tool in wanted]


def _tool(listed: ListedTool, config: McpConfig, server: McpServer) -> Tool:
    name = listed.spec.name
    spec = msgspec.structs.replace(listed.spec, name=config.prefix + name)
    is_pure = name in config.pure

    async def run(arguments: dict[str, Any]) -> str:
        return await server.call(name, arguments)

    return Tool(
        spec=spec,
        check=argument_check(spec),
        run=run,
        timeout_s=config.timeout_s,
        max_concurrency=config.max_concurrency,
        host=f"mcp {config.name}",
        version=f"{config.url or ' '.join(config.command)} {config.version}",
        is_pure=is_pure,
        is_idempotent=listed.is_idempotent,
        max_retries=config.max_retries if is_pure or listed.is_idempotent else 0,
        aclose=server.aclose,
    )
