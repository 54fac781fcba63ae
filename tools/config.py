"""The `tools` section of a configuration, and the executor it describes."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from engine.config import Positive, PositiveFloat, Section
from engine.errors import ConfigError
from tools.executor import DEFAULT_MAX_RESULT_CHARS, Executor
from tools.python import PythonConfig, python_tool
from tools.rewards import reward_tool
from tools.schema import Tool


class SearchConfig(Section, frozen=True):
    """A local corpus behind the `search` tool."""

    corpus: str
    """JSONL file with `text`, and optionally `title` and `id`, in each row."""
    top_k: Positive = 10
    snippet_chars: Positive = 1000
    """Characters of a passage that the model sees."""
    timeout_s: PositiveFloat = 30.0
    max_concurrency: Positive = 16


class RewardConfig(Section, frozen=True):
    """How a trajectory is scored."""

    kind: Literal["arpo", "official", "exact"] = "arpo"
    """`arpo`: equation 8 with values compared as values. `official`: the released code, with its quirks. `exact`:
    the whole answer or nothing."""


class ToolsConfig(Section, frozen=True):
    """The world of a run. A tool that has no section does not exist."""

    python: PythonConfig | None = None
    search: SearchConfig | None = None
    reward: RewardConfig = msgspec.field(default_factory=RewardConfig)
    max_result_chars: Positive = DEFAULT_MAX_RESULT_CHARS
    """Characters of a result that the model sees."""


def build_executor(config: ToolsConfig, *, tools: Sequence[Tool] = (), reward: Tool | None = None) -> Executor:
    """The executor of a run, with the corpus loaded: the configured tools, then `tools`; `reward` replaces the
    configured one.

    Raises `ConfigError` where the corpus cannot be used, or two tools have one name.
    """
    configured: list[Tool] = []
    if config.search is not None:
        configured.append(_search_tool(config.search))
    if config.python is not None:
        configured.append(python_tool(config.python))
    judge = reward or reward_tool(config.reward.kind)
    return Executor([*configured, *tools, judge], max_result_chars=config.max_result_chars)


def _search_tool(config: SearchConfig) -> Tool:
    from tools.search import Corpus, search_tool  # the door of bm25s

    try:
        corpus = Corpus.load(config.corpus)
    except ConfigError as error:
        raise ConfigError(f"{error} - at $.tools.search.corpus") from None
    return search_tool(
        corpus,
        top_k=config.top_k,
        snippet_chars=config.snippet_chars,
        timeout_s=config.timeout_s,
        max_concurrency=config.max_concurrency,
    )
