"""Configuration files laid over one another: a run's own file, and on top of it what an algorithm is made of."""

import tomllib
from pathlib import Path
from typing import Any, cast

from engine.errors import ConfigError


def is_file(override: str) -> bool:
    """Whether an override names a file instead of a key.

    >>> is_file("algorithms/dapo.toml"), is_file("data.path=world.toml")
    (True, False)
    """
    return override.endswith(".toml") and "=" not in override


def find_layer(name: str, *, shipped: Path | None) -> Path:
    """The file of that name, or else the one that `shipped` has. Raises `ConfigError`, naming those it has."""
    if shipped is None or Path(name).is_file():
        return Path(name)
    if (shipped / name).is_file():
        return shipped / name
    names = sorted(str(path.relative_to(shipped)) for path in (shipped / name).parent.glob("*.toml"))
    hint = f"; shipped are {', '.join(names)}" if names else ""
    raise ConfigError(f"{name}: no such configuration file{hint}")


def read_toml(path: Path) -> dict[str, Any]:
    """What a file says. Raises `ConfigError`, naming it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both together, key by key; what is above wins, and a section of another `kind` replaces the whole one below.

    >>> overlaid({"loss": {"kind": "ppo", "dual_clip": 3.0}, "lr": 1e-6}, {"loss": {"kind": "ppo", "eps_high": 0.28}})
    {'loss': {'kind': 'ppo', 'dual_clip': 3.0, 'eps_high': 0.28}, 'lr': 1e-06}
    >>> overlaid({"loss": {"kind": "ppo", "dual_clip": 3.0}}, {"loss": {"kind": "gspo"}})
    {'loss': {'kind': 'gspo'}}
    """
    found = dict(below)
    for key, value in above.items():
        found[key] = overlaid(found[key], value) if _is_one_section(found.get(key), value) else value
    return found


def _is_one_section(below: Any, above: Any) -> bool:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return False
    kinds = (cast("dict[str, Any]", below).get("kind"), cast("dict[str, Any]", above).get("kind"))
    return kinds[1] is None or kinds[0] == kinds[1]
