"""Secrets: what a configuration may hold and nothing that is written, logged or shown may."""

from typing import Any, TypeVar, cast

import msgspec

SECRETS = frozenset({"api_key", "password", "secret", "token"})
"""Names of keys whose values are secrets, in any section."""
HIDDEN = "(hidden)"

T = TypeVar("T")


def redacted(value: T) -> T:
    """The same configuration with every secret that is set replaced; what is not a secret compares equal.

    >>> class Server(msgspec.Struct, frozen=True):
    ...     url: str
    ...     api_key: str | None = None
    >>> redacted(Server("http://a", "xyzzy"))
    Server(url='http://a', api_key='(hidden)')
    """
    found: Any = value
    if isinstance(value, msgspec.Struct):
        changes: dict[str, Any] = {}
        for name in value.__struct_fields__:
            old = getattr(value, name)
            new = HIDDEN if name in SECRETS and isinstance(old, str) else redacted(old)
            if new is not old:
                changes[name] = new
        found = msgspec.structs.replace(value, **changes) if changes else value
    elif isinstance(value, tuple):
        old_items = cast("tuple[Any, ...]", value)
        items: tuple[Any, ...] = tuple(redacted(item) for item in old_items)
        if any(a is not b for a, b in zip(items, old_items, strict=True)):
            found = items
    return found


def hidden(value: Any) -> Any:
    """Plain data, as a file holds it, with every secret that is set replaced.

    >>> hidden({"tools": [{"url": "http://a", "api_key": "xyzzy"}]})
    {'tools': [{'url': 'http://a', 'api_key': '(hidden)'}]}
    """
    match value:
        case dict():
            table = cast("dict[str, Any]", value)
            return {k: HIDDEN if k in SECRETS and isinstance(v, str) else hidden(v) for k, v in table.items()}
        case list():
            return [hidden(item) for item in cast("list[Any]", value)]
        case _:
            return value
