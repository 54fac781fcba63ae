"""Values as TOML writes them: what `tomllib` reads, the other way round."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: Any) -> str:
    """One value, tables inline; for what `msgspec.to_builtins` gives, None excepted.

    >>> toml_value([1.0, "a", {"b": True, "c d": 1e-06}])
    '[1.0, "a", { b = true, "c d" = 1e-06 }]'
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but for pairs of surrogates, and for one character that TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case Mapping():
            table = cast("Mapping[str, Any]", value)
            inner = ", ".join(f"{toml_key(name)} = {toml_value(item)}" for name, item in table.items())
            return f"{{ {inner} }}" if inner else "{}"
        case Sequence():
            return f"[{', '.join(toml_value(item) for item in cast('Sequence[Any]', value))}]"
        case _:
            raise TypeError(f"TOML has no {type(value).__name__}")


def toml_key(name: str) -> str:
    """A key, in quotation marks where it needs them."""
    return name if _BARE.fullmatch(name) else toml_value(name)
