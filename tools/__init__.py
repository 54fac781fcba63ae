"""The world: tools, the executor in front of them, rewards, and the task that ships."""

from importlib import import_module
from typing import Any

_HOME = {
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
    if name not in _HOME:
        raise AttributeError(f"module 'tools' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
