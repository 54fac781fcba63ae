"""Who runs where: processes, the command line, and the one file that knows every part.

Importing `actors` loads nothing heavy; a name below loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.config import Config
    from actors.policy import Agent, Policy, Segment
    from actors.runtime import LocalRuntime
    from actors.session import Session

_HOMES = {
    "Agent": "actors.policy",
    "Config": "actors.config",
    "LocalRuntime": "actors.runtime",
    "Policy": "actors.policy",
    "Segment": "actors.policy",
    "Session": "actors.session",
}

__all__ = ["Agent", "Config", "LocalRuntime", "Policy", "Segment", "Session"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actors' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
