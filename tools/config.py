"""The `tools` section of a configuration, and the executor it describes."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from engine.config import NonNegative, Positive, PositiveFloat, Section
from engine.errors import ConfigError
from tools.breaker import DEFAULT_PAUSE_S, DEFAULT_THRESHOLD
from tools.browse import BrowseConfig, browse_tool
from tools.call_cache import CallCache, MemoryCache, TieredCache
from tools.dense_config import DenseConfig
from tools.endpoint import EndpointConfig, endpoint_tool
from tools.executor import DEFAULT_MAX_RESULT_CHARS, Executor
from tools.http import HttpClient
from tools.mcp_config import McpConfig
from tools.passages import ToolLimits, search_tool
from tools.python import PythonConfig, python_tool
from tools.retrieval_http import HttpRetriever, RetrieverConfig
from tools.rewards import reward_tool
from tools.schema import Tool
from tools.search_cache import import_search_cache
from tools.web_search import WebSearch, WebSearchConfig


class SearchConfig(ToolLimits, frozen=True, kw_only=True):
    """A local corpus behind the `search` tool."""

    corpus: str
    """JSONL or parquet file with `text`, and optionally `title` and `id`, in each row; or `contents`, as Search-R1 has
    it."""
    index: str = ""
    """Folder where the index is kept, so that it is made once; empty makes it at each start."""
    dense: DenseConfig | None = None
    """Vectors beside BM25, or in its place; unset is BM25 alone."""


class RewardConfig(Section, frozen=True):
    """How a trajectory is scored."""

    kind: Literal["arpo", "official", "exact"] = "arpo"
    """`arpo`: equation 8 with values compared as values. `official`: the released code, with its quirks. `exact`:
    the whole answer or nothing."""


class CacheConfig(Section, frozen=True):
    """Results of earlier calls, used again where a tool declares that equal calls have equal results."""

    reuse: bool = True
    """False runs every call, also one that equals another that is under way: for measuring what calls cost."""
    memory_mib: NonNegative = 64
    """0 keeps nothing in memory."""
    file: str = ""
    """SQLite file that runs share; empty for none."""
    file_mib: Positive = 1024
    """What was used last is kept."""
    search_cache: str = ""
    """A file in the form of ARPO's `search_cache.json`: results that `search` need not look for."""


class BreakerConfig(Section, frozen=True):
    """When a host that does not answer is left alone."""

    failures: Positive = DEFAULT_THRESHOLD
    """In a row."""
    pause_s: PositiveFloat = DEFAULT_PAUSE_S
    """Until it is tried again; doubled as long as that fails."""


class ToolsConfig(Section, frozen=True):
    """The world of a run. A tool that has no section does not exist."""

    python: PythonConfig | None = None
    search: SearchConfig | None = None
    """One of the three that are called `search`."""
    retriever: RetrieverConfig | None = None
    web_search: WebSearchConfig | None = None
    browse: BrowseConfig | None = None
    http: tuple[EndpointConfig, ...] = ()
    """Endpoints of your own, one `[[tools.http]]` each."""
    mcp: tuple[McpConfig, ...] = ()
    """MCP servers, one `[[tools.mcp]]` each."""
    reward: RewardConfig = msgspec.field(default_factory=RewardConfig)
    cache: CacheConfig = CacheConfig()
    breaker: BreakerConfig = BreakerConfig()
    max_result_chars: Positive = DEFAULT_MAX_RESULT_CHARS
    """Characters of a result that the model sees."""

    @property
    def has_any(self) -> bool:
        """Whether a model has anything to call."""
        return any((self.python, self.search, self.retriever, self.web_search, self.browse, self.http, self.mcp))


def build_executor(config: ToolsConfig, *, tools: Sequence[Tool] = (), reward: Tool | None = None) -> Executor:
    """The executor of a run, with corpora loaded and MCP servers asked: the configured tools, then `tools`; `reward`
    replaces the configured one.

    Raises `ConfigError`, one line with the path of the key, where something cannot be used: a corpus, a key that is
    not set, a server that cannot be started, two tools of one name.
    """
    configured = [*_configured(config), *tools]
    judge = reward or reward_tool(config.reward.kind, tools=[tool.name for tool in configured])
    return Executor(
        [*configured, judge],
        max_result_chars=config.max_result_chars,
        cache=_cache(config.cache, configured) if config.cache.reuse else None,
        reuses=config.cache.reuse,
        breaker_threshold=config.breaker.failures,
        breaker_pause_s=config.breaker.pause_s,
    )


def _configured(config: ToolsConfig) -> list[Tool]:
    made: list[Tool] = []
    if config.search is not None:
        with _at("search.corpus"):
            made.append(_local_search(config.search))
    if config.retriever is not None:
        http = HttpClient(max_connections=config.retriever.max_concurrency)
        retriever = HttpRetriever(http, url=config.retriever.url, version=config.retriever.version)
        made.append(search_tool(retriever, config.retriever, host=urlsplit(config.retriever.url).netloc))
    if config.web_search is not None:
        with _at("web_search"):
            http = HttpClient(max_connections=config.web_search.max_concurrency)
            web = WebSearch(config.web_search, http=http)
            made.append(search_tool(web, config.web_search, host=config.web_search.provider))
    if config.browse is not None:
        with _at("browse"):
            made.append(browse_tool(config.browse))
    if config.python is not None:
        made.append(python_tool(config.python))
    for number, endpoint in enumerate(config.http):
        with _at(f"http[{number}]"):
            made.append(endpoint_tool(endpoint))
    for number, server in enumerate(config.mcp):
        from tools.mcp_tools import mcp_tools  # its door

        with _at(f"mcp[{number}]"):
            made += mcp_tools(server)
    return made


def _local_search(config: SearchConfig) -> Tool:
    from tools.search import Corpus  # the door of bm25s

    corpus = Corpus.load(config.corpus, index=config.index)
    if config.dense is None:
        return search_tool(corpus, config)
    from tools.dense import open_dense

    return search_tool(open_dense(corpus, config.dense), config, host=urlsplit(config.dense.url).netloc)


def _cache(config: CacheConfig, tools: Sequence[Tool]) -> CallCache | None:
    tiers: list[CallCache] = []
    if config.search_cache:
        with _at("cache.search_cache"):
            searches = [tool for tool in tools if tool.name == "search"]
            if not searches:
                raise ConfigError("there is no tool called search")
            tiers.append(import_search_cache(config.search_cache, searches[0]))
    if config.memory_mib:
        tiers.append(MemoryCache(max_bytes=config.memory_mib << 20))
    if config.file:
        from tools.call_cache_sqlite import SqliteCache

        with _at("cache.file"):
            tiers.append(SqliteCache(config.file, max_bytes=config.file_mib << 20))
    return TieredCache(tiers) if tiers else None


@contextlib.contextmanager
def _at(key: str) -> Generator[None]:
    """Name the key in what is raised inside."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error} - at $.tools.{key}") from None
