"""ARPO's `search_cache.json`, a dictionary from query to result text, as results of our `search` tool."""

from pathlib import Path

import msgspec

from engine.errors import ConfigError
from tools.call_cache import ImportedCache, call_key
from tools.passages import plain_query
from tools.schema import Tool


def import_search_cache(path: str | Path, search: Tool) -> ImportedCache:
    """What the file knows, under the keys of `search`; a query is found where it is equal, but for quotation marks.

    Raises `ConfigError`, one line, for a file that is something else.
    """
    try:
        texts = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, str])
    except OSError as error:
        raise ConfigError(f"search cache {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"search cache {path}: {error}") from None
    keyed = {call_key(search, {"query": plain_query(query)}): text for query, text in texts.items()}
    return ImportedCache({key: text for key, text in keyed.items() if key is not None})
