"""Configuration is types: TOML files decoded into frozen Structs, with errors that name the key.

Each section lives with what it configures and derives from `Section`; the whole is put together in `actors.config`.
"""

import copy
import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec import Meta

from engine.config_layers import find_layer, is_file, overlaid, read_toml
from engine.errors import ConfigError
from engine.secrets import redacted

Positive = Annotated[int, Meta(gt=0)]
NonNegative = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: unknown keys are refused, values are checked, and nothing changes afterwards.

    Its `repr`, `to_json`, `digest` and `differences` know no secret (see `secrets`).
    """

    def __repr__(self) -> str:
        shown = redacted(self)
        fields = ", ".join(f"{name}={getattr(shown, name)!r}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({fields})"


S = TypeVar("S", bound=Section)


def load(path: str | Path, kind: type[S], *, overrides: Sequence[str] = (), shipped: Path | None = None) -> S:
    """Read a TOML file into `kind`, after applying the overrides in their order.

    An override is `a.b=value`, or a further TOML file that is laid over what is there (`overlaid`), looked for in the
    folder `shipped` too. Raises `ConfigError` with one line: `FILE: message - at $.section.key`; FILE is the one that
    brought the mistake in, and the first one for `a.b=value`.
    """
    found = layers(path, overrides=overrides, shipped=shipped)
    try:
        return decode(found[-1].state, kind, source=str(path))
    except ConfigError as error:
        mistake = str(error)
    for layer in found:
        try:
            decode(layer.state, kind, source=str(path))
        except ConfigError as error:
            if str(error) == mistake:
                source = layer.source if is_file(layer.source) else str(path)
                raise ConfigError(f"{source}{mistake.removeprefix(str(path))}") from None
    raise AssertionError("the last state is the one that did not decode")


class Layer(NamedTuple):
    """What is configured once a file, or an override, has been laid over all before it."""

    source: str
    """As it was written on the command line."""
    state: dict[str, Any]


def layers(path: str | Path, *, overrides: Sequence[str] = (), shipped: Path | None = None) -> list[Layer]:
    """A TOML file, and one layer more for each override; nothing is decoded. Raises as `load` does."""
    raw = read_toml(Path(path))
    found = [Layer(str(path), raw)]
    for override in overrides:
        if is_file(override):
            raw = overlaid(raw, read_toml(find_layer(override, shipped=shipped)))
        else:
            raw = copy.deepcopy(raw)
            apply_override(raw, override)
        found.append(Layer(override, raw))
    return found


def decode(raw: dict[str, Any], kind: type[S], *, source: str) -> S:
    """Check a plain dictionary against `kind`; `source` is named in the error."""
    try:
        return msgspec.convert(raw, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply one `a.b=value` to a plain dictionary in place.

    The value is TOML; a bare word is a string; nothing behind `=` removes the key, so that its default applies. A
    number names an element of an array: `sft.0.steps=3`.

    >>> raw = {"rollout": {"size": 8}}
    >>> apply_override(raw, "rollout.size=16"); apply_override(raw, "run.name=first"); raw
    {'rollout': {'size': 16}, 'run': {'name': 'first'}}
    """
    key, separator, text = override.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not separator or not all(names):
        raise ConfigError(f"override {override!r}: expected a.b=value or FILE.toml")
    table: dict[str, Any] = raw
    place = 0
    while place < len(names) - 1:
        child: Any = table.setdefault(names[place], {})
        place += 1
        if isinstance(child, list):
            child = _element(cast("list[Any]", child), names[place], override=override)
            place += 1
        if not isinstance(child, dict) or place == len(names):
            raise ConfigError(f"override {override!r}: {'.'.join(names[:place])} is a value, not a section")
        table = cast("dict[str, Any]", child)
    if text.strip():
        table[names[-1]] = _toml_value(text.strip())
    else:
        table.pop(names[-1], None)


def _element(values: list[Any], name: str, *, override: str) -> Any:
    if not name.isdecimal() or int(name) >= len(values):
        raise ConfigError(f"override {override!r}: {name!r} is none of the {len(values)} places of an array")
    return values[int(name)]


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_json(config: Section) -> bytes:
    """The resolved configuration, defaults included, as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(redacted(config)), indent=2)


def digest(config: Section) -> str:
    """A short fingerprint of a resolved configuration."""
    return hashlib.blake2b(msgspec.json.encode(redacted(config), order="deterministic"), digest_size=8).hexdigest()


def differences(one: Section, other: Section) -> list[str]:
    """Keys in which two configurations differ, as `section.key`, or `section.0.key` in an array of sections."""
    keys: list[str] = []

    def compare(a: Any, b: Any, path: str) -> None:
        a, b = _numbered(a), _numbered(b)
        if isinstance(a, dict) and isinstance(b, dict):
            names: set[str] = {*a, *b}  # pyright: ignore[reportUnknownArgumentType]
            for name in sorted(names):
                compare(a.get(name), b.get(name), f"{path}.{name}" if path else name)  # pyright: ignore
        elif a != b:
            keys.append(path)

    compare(msgspec.to_builtins(redacted(one)), msgspec.to_builtins(redacted(other)), "")
    return keys


def _numbered(value: Any) -> Any:
    """An array of sections as one section with numbers for keys; anything else as it is."""
    if not isinstance(value, tuple) or not all(isinstance(entry, dict) for entry in cast("tuple[Any, ...]", value)):
        return value  # pyright: ignore[reportUnknownVariableType]
    return {str(place): entry for place, entry in enumerate(cast("tuple[Any, ...]", value))}
