"""`arpo config`: all that holds for a run, as a TOML file whose comments say where each value comes from.

Or, without a configuration, all that can be said: the reference.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from actors.config import SHIPPED, Config
from actors.reference import reference
from engine.config import Layer, layers
from engine.config_layers import is_file
from engine.config_sources import is_array_of_tables, sources
from engine.errors import ConfigError
from engine.secrets import redacted
from engine.toml_values import toml_key, toml_value

COMMENT_COLUMN = 44


def shown(path: str | None, overrides: Sequence[str], *, is_reference: bool) -> str:
    """What the command writes. Raises `ConfigError`, also where both or neither are asked for."""
    if is_reference == (path is not None):
        raise ConfigError("arpo config needs a CONFIG, or --reference, and not both")
    return reference(Config) if path is None else effective(path, *overrides)


def effective(path: str | Path, *overrides: str) -> str:
    """What `Config.load` makes of the same arguments, as text that decodes to the same configuration, but for secrets,
    which are hidden. Raises `ConfigError` as that does."""
    config = Config.load(path, *overrides)
    found = layers(path, overrides=overrides, shipped=SHIPPED)
    # An override is not repeated, since it may hold a secret.
    files = {layer.source for layer in found[1:] if is_file(layer.source)} | {str(path)}
    told = [layer if layer.source in files else Layer("command line", layer.state) for layer in found]
    origins = sources(told)
    return "\n".join(_table(msgspec.to_builtins(redacted(config)), header="", path="", origins=origins)).lstrip("\n")


def _table(table: Mapping[str, Any], *, header: str, path: str, origins: Mapping[str, str]) -> Iterator[str]:
    """Values first: what stands behind a header of TOML belongs to that table."""
    deeper: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{path}.{name}" if path else name
        if (isinstance(value, dict) and value) or is_array_of_tables(value):
            deeper[name] = value
        elif value is not None or key in origins:
            line = f"{toml_key(name)} = {toml_value('null' if value is None else value)}"
            yield f"{line:<{COMMENT_COLUMN}}  # {origins.get(key, 'default')}"
        else:
            yield f"# {name} is unset"
    for name, value in deeper.items():
        key = f"{path}.{name}" if path else name
        inner = f"{header}.{toml_key(name)}" if header else toml_key(name)
        entries = cast("Sequence[dict[str, Any]]", value) if is_array_of_tables(value) else [value]
        for place, entry in enumerate(entries):
            below = f"{key}.{place}" if entries is value else key
            yield from ("", f"[[{inner}]]" if entries is value else f"[{inner}]")
            yield from _table(entry, header=inner, path=below, origins=origins)
