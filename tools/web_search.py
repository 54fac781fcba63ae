"""Search of the web through one adapter: a provider says how to ask, and where in its answer the results stand.

| provider     | asked by                                   | results               | usual key            |
|--------------|--------------------------------------------|-----------------------|----------------------|
| `serper`     | POST google.serper.dev/search              | `organic`             | `SERPER_API_KEY`     |
| `brave`      | GET api.search.brave.com/res/v1/web/search | `results`, in `web`   | `BRAVE_API_KEY`      |
| `searxng`    | GET URL/search?format=json                 | `results`             | none                 |
| `brightdata` | POST api.brightdata.com/request, for Bing  | `organic`             | `BRIGHTDATA_API_KEY` |

Keys come from the environment and from nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import urlencode

import msgspec

from engine.errors import ConfigError
from tools.http import Http, HttpRequest
from tools.keys import key_of
from tools.passages import Passage, ToolLimits
from tools.schema import UnavailableError

ProviderName = Literal["serper", "brave", "searxng", "brightdata"]


class WebSearchConfig(ToolLimits, frozen=True, kw_only=True):
    """The web behind the `search` tool: the section `[tools.web_search]`."""

    provider: ProviderName
    """Whose API is asked."""
    url: str = ""
    """Of the service; empty is the provider's own. SearXNG has none of its own."""
    key_env: str = ""
    """Environment variable that holds the key; empty is the provider's usual one."""
    country: str = "us"
    """Results for this country, in two letters."""
    language: str = "en"
    """Results in this language, in two letters."""
    zone: str = ""
    """BrightData's name for what is paid for."""


@dataclass(frozen=True, kw_only=True)
class _Provider:
    url: str
    key_env: str
    ask: Callable[[WebSearchConfig, str, str, int], HttpRequest]
    """(config, key, query, top_k) to a request; `config.url` is filled in."""
    results: tuple[str, ...]
    """Keys that lead to the list of results."""
    link: str
    snippet: tuple[str, ...]
    """Keys of the text, the first one that is there."""


def usual_key(provider: ProviderName) -> str:
    """The environment variable that a provider's key is usually in; empty where it wants none."""
    return _PROVIDERS[provider].key_env


class WebSearch:
    """`Retriever` on a provider."""

    def __init__(self, config: WebSearchConfig, *, http: Http) -> None:
        """Raises `ConfigError` for a key that is not set, or an address or a zone that is missing."""
        self._provider = _PROVIDERS[config.provider]
        self._config = _completed(config, self._provider)
        variable = config.key_env or usual_key(config.provider)
        self._key = key_of(variable) if variable else ""
        self._http = http
        self.version = f"{config.provider} {config.country} {config.language}"

    async def retrieve(self, query: str, *, top_k: int) -> Sequence[Passage]:
        """What the provider finds, in its order; results without a text are left out."""
        answer = await self._http.send(self._provider.ask(self._config, self._key, query, top_k))
        found: Any = answer.json()
        for key in self._provider.results:
            if not isinstance(found, dict):
                raise UnavailableError(f"{self._config.provider}: what came back holds no results")
            if key not in found:
                return []  # what is empty is left out
            found = cast("dict[str, Any]", found)[key]
        if not isinstance(found, list):
            raise UnavailableError(f"{self._config.provider}: what came back holds no results")
        passages = [self._passage(result) for result in cast("list[Any]", found)]
        return [passage for passage in passages if passage is not None][:top_k]

    async def aclose(self) -> None:
        await self._http.aclose()

    def _passage(self, result: Any) -> Passage | None:
        if not isinstance(result, dict):
            return None
        fields = {key: value for key, value in cast("dict[str, Any]", result).items() if isinstance(value, str)}
        text = next((fields[key] for key in self._provider.snippet if fields.get(key)), "")
        if not text:
            return None
        return Passage(text=text, title=fields.get("title", ""), id=fields.get(self._provider.link, ""))


def _completed(config: WebSearchConfig, provider: _Provider) -> WebSearchConfig:
    url = (config.url or provider.url).rstrip("/")
    if not url:
        raise ConfigError(f"{config.provider} has no address of its own: url is needed")
    if config.provider == "brightdata" and not config.zone:
        raise ConfigError("brightdata needs the name of a zone")
    return msgspec.structs.replace(config, url=url)


def _serper(config: WebSearchConfig, key: str, query: str, top_k: int) -> HttpRequest:
    body = {"q": query, "num": top_k, "gl": config.country, "hl": config.language}
    return HttpRequest(url=f"{config.url}/search", method="POST", json=body, headers={"X-API-KEY": key})


def _brave(config: WebSearchConfig, key: str, query: str, top_k: int) -> HttpRequest:
    asked = {"q": query, "count": str(top_k), "country": config.country, "search_lang": config.language}
    headers = {"X-Subscription-Token": key, "Accept": "application/json"}
    return HttpRequest(url=f"{config.url}/res/v1/web/search", query=asked, headers=headers)


def _searxng(config: WebSearchConfig, key: str, query: str, top_k: int) -> HttpRequest:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    asked = {"q": query, "format": "json", "language": config.language}
    return HttpRequest(url=f"{config.url}/search", query=asked, headers=headers)


def _brightdata(config: WebSearchConfig, key: str, query: str, top_k: int) -> HttpRequest:
    market = f"{config.language}-{config.country.upper()}"
    asked = urlencode({"q": query, "mkt": market, "setLang": config.language, "cc": config.country, "brd_json": 1})
    body = {"zone": config.zone, "url": f"https://www.bing.com/search?{asked}", "format": "raw"}
    headers = {"Authorization": f"Bearer {key}"}
    return HttpRequest(url=f"{config.url}/request", method="POST", json=body, headers=headers)


_PROVIDERS: dict[ProviderName, _Provider] = {
    "serper": _Provider(
        url="https://google.serper.dev",
        key_env="SERPER_API_KEY",
        ask=_serper,
        results=("organic",),
        link="link",
        snippet=("snippet",),
    ),
    "brave": _Provider(
        url="https://api.search.brave.com",
        key_env="BRAVE_API_KEY",
        ask=_brave,
        results=("web", "results"),
        link="url",
        snippet=("description",),
    ),
    "searxng": _Provider(url="", key_env="", ask=_searxng, results=("results",), link="url", snippet=("content",)),
    "brightdata": _Provider(
        url="https://api.brightdata.com",
        key_env="BRIGHTDATA_API_KEY",
        ask=_brightdata,
        results=("organic",),
        link="link",
        snippet=("description", "snippet"),
    ),
}
