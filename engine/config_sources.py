"""Where the keys of a configuration come from: of several layers, the one that brought each value in."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from engine.config import Layer


def sources(layers: Sequence[Layer]) -> dict[str, str]:
    """Each key that is set in the end, such as `learner.lr` or `sft.0.steps`, and the source of its value.

    A layer that says again what holds already changes nothing.

    >>> below = Layer("run.toml", {"train": {"steps": 3, "batch_size": 8}})
    >>> above = Layer("train.steps=4", {"train": {"steps": 4, "batch_size": 8}})
    >>> sources([below, above])
    {'train.steps': 'train.steps=4', 'train.batch_size': 'run.toml'}
    """
    found: dict[str, tuple[Any, str]] = {}
    for layer in layers:
        before = found
        found = {
            key: before[key] if key in before and before[key][0] == value else (value, layer.source)
            for key, value in leaves(layer.state)
        }
    return {key: source for key, (_, source) in found.items()}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of nested tables and arrays of tables, with what stands there; an empty table is a value.

    >>> list(leaves({"a": {"b": 1}, "c": [{"d": 2}]}))
    [('a.b', 1), ('c.0.d', 2)]
    """
    inner: dict[str, Any] = {}
    if isinstance(value, dict):
        inner = cast("dict[str, Any]", value)
    elif is_array_of_tables(value):
        inner = {str(place): entry for place, entry in enumerate(value)}
    for name, entry in inner.items():
        yield from leaves(entry, f"{path}.{name}" if path else name)
    if not inner:
        yield path, value


def is_array_of_tables(value: Any) -> bool:
    """Whether TOML writes it with `[[...]]`: a list of nothing but tables, and not an empty one."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(entry, dict) for entry in cast("Sequence[Any]", value))
