"""What a person may say about the gateway. Keys are in a file or the environment, never in a configuration."""

from typing import Annotated

from msgspec import Meta

from engine.config import Positive, PositiveFloat, Section
from engine.errors import ConfigError


class ServeConfig(Section, frozen=True):
    """`arpo serve`."""

    host: str = "127.0.0.1"
    """Anything but loopback needs keys."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    model: str = "policy"
    """The name under which `/v1/models` lists the policy; requests may name any model, so that a client changes
    nothing but its address."""
    keys_file: str | None = None
    """A TOML file with `[name]`, `key` and `reward_key` for each tenant."""
    keys_env: str = "ARPO_SERVE_KEYS"
    """Environment variable that holds the same as text, where there is no file."""
    train: bool = False
    """Train on finished, rewarded conversations. Off, whatever was recorded trains nothing."""
    record: bool = True
    """Write conversations to the folder of the run."""
    retention_s: PositiveFloat = 7 * 86_400.0
    """How long a record stays on disk behind its last turn."""
    group_size: Positive = 1
    """Conversations of one prompt that are credited together; with 1 a reward needs an advantage without groups, such
    as `reinforce_pp`. A group that is not full waits `idle_s` behind its last conversation for another one."""
    batch_size: Positive = 8
    """Trees of an online step."""
    stream_interval: Positive = 4
    """Tokens in a streamed chunk."""
    max_body_bytes: Positive = 4 * 2**20
    """A larger body is answered 413."""
    max_messages: Positive = 2048
    """A longer history is answered 400."""
    max_streams: Positive = 1024
    """Requests that sample at one time; one more is answered 429."""
    max_conversations: Positive = 10_000
    """Open conversations of one tenant. Where there is no room for one more, the one that was quiet for longest ends,
    of those that the client has not named and that have no reward; where there is none it is answered 429."""
    read_timeout_s: PositiveFloat = 30.0
    """How long a body may take to arrive."""
    write_timeout_s: PositiveFloat = 30.0
    """How long a client may take to accept a chunk."""
    idle_s: PositiveFloat = 3600.0
    """A conversation that nobody has touched for so long ends, without a reward that it has not got by then."""

    def __post_init__(self) -> None:
        if "/" in self.model or not self.model:
            raise ConfigError(f"got model={self.model!r}: a name without a slash is needed - at $.serve.model")
