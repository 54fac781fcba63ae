"""Needs: what configured tools take from their surroundings, told without building them: keys, optional packages."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from tools.config import ToolsConfig
from tools.web_search import usual_key

NeedKind = Literal["variable", "package"]


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """One thing without which an executor is refused. Produced by `needs`, consumed by the doctor."""

    key: str
    """`web_search`: the section that needs it, below `tools`."""
    kind: NeedKind
    name: str
    """Of an environment variable, or of a distribution."""
    extra: str = ""
    """Of this distribution, which brings the package."""


def needs(config: ToolsConfig) -> Iterator[Need]:
    """Everything, in the order of the sections.

    >>> from tools.mcp_config import McpConfig
    >>> [need.name for need in needs(ToolsConfig(mcp=(McpConfig(name="far", url="http://far", key_env="FAR"),)))]
    ['mcp', 'FAR']
    """
    if (search := config.search) is not None and search.dense is not None:
        yield from _variable("search.dense", search.dense.key_env)
    if (web := config.web_search) is not None:
        yield from _variable("web_search", web.key_env or usual_key(web.provider))
    if (browse := config.browse) is not None:
        yield Need(key="browse", kind="package", name="trafilatura", extra="web")
        if browse.summary is not None:
            yield from _variable("browse.summary", browse.summary.key_env)
    for number, endpoint in enumerate(config.http):
        yield from _variable(f"http.{number}", endpoint.key_env)
    for number, server in enumerate(config.mcp):
        yield Need(key=f"mcp.{number}", kind="package", name="mcp", extra="mcp")
        yield from _variable(f"mcp.{number}", server.key_env)


def _variable(key: str, name: str) -> Iterator[Need]:
    if name:
        yield Need(key=f"{key}.key_env", kind="variable", name=name)
