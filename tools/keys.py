"""Keys of services: from the environment, the only place they may come from."""

import os

from engine.errors import ConfigError


def key_of(variable: str) -> str:
    """The value of an environment variable. Raises `ConfigError`, which names the variable, where it is not set."""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(f"the environment variable {variable} is not set")
    return value


def bearer(variable: str) -> dict[str, str]:
    """The header that carries such a key; none for an empty name."""
    return {"Authorization": f"Bearer {key_of(variable)}"} if variable else {}
