"""What a person may say about an MCP server."""

import msgspec

from engine.config import NonNegative, Positive, PositiveFloat, Section
from engine.errors import ConfigError


class McpConfig(Section, frozen=True, kw_only=True):
    """One entry of `[[tools.mcp]]`: a server whose tools become tools."""

    name: str
    """Ours, for messages and for its circuit breaker."""
    command: tuple[str, ...] = ()
    """Starts a server that speaks over its standard input and output."""
    url: str = ""
    """Of a server that speaks over HTTP, in place of a command."""
    env: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Environment of the command, beside the few variables that the SDK hands on."""
    key_env: str = ""
    """Environment variable whose value is sent to the URL as `Authorization: Bearer ...`."""
    log: str = ""
    """File that the command's standard error is appended to; empty throws it away."""
    include: tuple[str, ...] = ()
    """Names of the tools that are wanted; empty is all of them."""
    prefix: str = ""
    """Put before their names, where two servers use the same ones."""
    pure: tuple[str, ...] = ()
    """Tools, by the server's names, whose results may be used again for equal arguments."""
    version: str = ""
    """Part of what their results are kept by, with the command or the URL."""
    timeout_s: PositiveFloat = 30.0
    """Deadline of every call."""
    start_timeout_s: PositiveFloat = 30.0
    """How long it may take to start and to list its tools."""
    max_concurrency: Positive = 8
    """Calls at one time."""
    max_retries: NonNegative = 1
    """Where the server is gone, for tools that it declares idempotent or read-only, and pure ones."""

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ConfigError(f"the MCP server {self.name!r} needs a command or a url, and not both - at $.tools.mcp")
