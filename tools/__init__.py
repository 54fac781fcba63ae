"""The world: tools, the executor in front of them, rewards, and the task that ships.

    schema     a typed function -> a `Tool`          executor   the gate: once for equal calls, failures as results
    lane       deadline, attempts, counters          hosts      permits, rates and a breaker for each service
    python     code in a subprocess                  passages   the `search` tool, over whatever finds passages
    browse     pages of the web as text              endpoint   an HTTP endpoint as a tool
    mcp_tools  the tools of an MCP server            call_cache results used again
    rewards    what an answer is worth               answers    what it means for two answers to be equal
    toolworld  a generated task                      faults     fakes, and tools that misbehave
    config     the `tools` section

Importing `tools` loads none of them; a name below loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.config import ToolsConfig, build_executor
    from tools.executor import Executor
    from tools.rewards import arpo_reward, exact_reward, official_reward
    from tools.schema import Tool, tool

_HOMES = {
    "Executor": "tools.executor",
    "Tool": "tools.schema",
    "ToolsConfig": "tools.config",
    "arpo_reward": "tools.rewards",
    "build_executor": "tools.config",
    "exact_reward": "tools.rewards",
    "official_reward": "tools.rewards",
    "tool": "tools.schema",
}

__all__ = [
    "Executor",
    "Tool",
    "ToolsConfig",
    "arpo_reward",
    "build_executor",
    "exact_reward",
    "official_reward",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tools' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
