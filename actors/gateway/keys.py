"""Keys: who may talk to the policy, and who may say what it was worth."""

import hmac
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from actors.gateway.config import ServeConfig
from actors.gateway.errors import ApiError
from engine.errors import ConfigError
from engine.loopback import is_loopback

LOCAL = "local"
"""The only tenant of a gateway without keys."""
MIN_LENGTH = 8
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class TenantKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The credentials of one tenant. Conversations, trees and cached prefixes belong to a tenant."""

    key: str
    reward_key: str | None = None
    """Rewards are given with this one alone: an agent that holds `key` cannot praise itself."""

    def __repr__(self) -> str:
        return "TenantKeys(key=***, reward_key=***)"


class Keys:
    """The tenants of a gateway. Comparisons take the same time for every key."""

    def __init__(self, tenants: Mapping[str, TenantKeys]) -> None:
        """Raises `ConfigError` for a name that cannot be a folder, and for keys that are short or not unique."""
        self._tenants = dict(tenants)
        secrets = [secret for one in tenants.values() for secret in (one.key, one.reward_key) if secret is not None]
        for name in tenants:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"tenant {name!r}: small letters, digits, - and _ are allowed, 32 at most")
        if any(len(secret) < MIN_LENGTH or not secret.isascii() for secret in secrets):
            raise ConfigError(f"a key has {MIN_LENGTH} ASCII characters at least")
        if len(set(secrets)) != len(secrets):
            raise ConfigError("two keys are the same")

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._tenants) or 'none'})"

    @property
    def are_needed(self) -> bool:
        return bool(self._tenants)

    def tenant(self, key: str | None) -> str:
        """Whose key this is. Raises `ApiError` 401."""
        if not self._tenants:
            return LOCAL
        return self._find(key, is_reward=False)

    def rewarder(self, key: str | None) -> str:
        """The tenant whose conversations this reward key may judge. Raises `ApiError` 401, and 403 without keys."""
        if not any(one.reward_key for one in self._tenants.values()):
            raise ApiError(403, "this gateway has no reward key: set one in serve.keys_file", code="no_reward_key")
        return self._find(key, is_reward=True)

    def _find(self, key: str | None, *, is_reward: bool) -> str:
        found = ""
        given = (key or "").encode("utf-8", "surrogateescape")  # a header may hold any bytes
        for name, one in self._tenants.items():
            secret = one.reward_key if is_reward else one.key
            if secret is not None and hmac.compare_digest(secret.encode(), given):
                found = name
        if not found:
            raise ApiError(401, "the key is missing or wrong", code="invalid_api_key")
        return found


def load_keys(config: ServeConfig, *, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of the file, or of the environment. Raises `ConfigError`, which names no key, where they are unusable,
    and where a gateway that others can reach, or that trains, has none."""
    source, text = config.keys_env, environment.get(config.keys_env, "")
    if config.keys_file is not None:
        source = config.keys_file
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{source}: cannot be read - at $.serve.keys_file") from None
    try:
        keys = Keys(msgspec.convert(tomllib.loads(text), dict[str, TenantKeys]))
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"{source}: no TOML") from None
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{source}: {error}") from None
    if not keys.are_needed and not is_loopback(config.host):
        raise ConfigError(f"{config.host} can be reached by others: keys are needed - at $.serve.keys_file")
    if not keys.are_needed and config.train:
        raise ConfigError("training on traffic needs reward keys - at $.serve.keys_file")
    return keys
