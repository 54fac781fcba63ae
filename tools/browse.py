"""The `browse` tool: a page of the web as text, cut to a budget, or summed up by a model with a question in mind.

Only public addresses are fetched, unless the configuration allows others: what counts is the address that is connected
to, at every redirect (`http`, `addresses`). `Summariser` is the seam to the model.
"""

import asyncio
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from engine.config import NonNegative, Positive, PositiveFloat, Section
from engine.errors import ToolError
from tools.addresses import AddressRule
from tools.http import Http, HttpClient, HttpRequest
from tools.keys import bearer
from tools.readable import check_installed, readable
from tools.schema import Tool, UnavailableError, tool

_PROMPT = (
    "Below is the text of a web page. Write down, in at most {words} words, everything in it that helps with this: "
    "{goal}\nKeep names, numbers and dates exact. Say so where the page does not help.\n\n{page}"
)
_CHARS_A_WORD = 6


class SummaryConfig(Section, frozen=True, kw_only=True):
    """The model that sums pages up, behind an OpenAI-compatible `/chat/completions`."""

    url: str
    """Of the API, such as `http://127.0.0.1:30000/v1`."""
    model: str
    """Its name there."""
    key_env: str = ""
    """Environment variable that holds its key; empty for none."""
    max_chars: Positive = 4_000
    """About how long a summary may be."""


class BrowseConfig(Section, frozen=True, kw_only=True):
    """Reading pages: the section `[tools.browse]`."""

    max_chars: Positive = 24_000
    """Of a page's text, about 6,000 tokens; what `tools.max_result_chars` leaves of it is what the model sees."""
    max_mib: Positive = 4
    """Of a page as it is fetched."""
    max_redirects: NonNegative = 5
    """Each is checked as the first address was."""
    timeout_s: PositiveFloat = 60.0
    """Of fetching, reading and summing up together."""
    max_concurrency: Positive = 16
    """Pages at one time."""
    allow_networks: tuple[str, ...] = ()
    """Networks that may be fetched from besides the public ones, such as `10.1.0.0/16`."""
    summary: SummaryConfig | None = None
    """Unset shows the page itself."""


class Summariser(Protocol):
    """Says what a text holds that serves a goal."""

    async def summarise(self, page: str, *, goal: str) -> str: ...

    async def aclose(self) -> None: ...


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message


class _Chat(msgspec.Struct):
    choices: Annotated[list[_Choice], Meta(min_length=1)]


class ChatSummariser:
    """`Summariser` on a chat model."""

    def __init__(self, config: SummaryConfig, *, http: Http) -> None:
        """Raises `ConfigError` for a key that is not set."""
        self._config = config
        self._headers = bearer(config.key_env)
        self._http = http

    async def summarise(self, page: str, *, goal: str) -> str:
        words = self._config.max_chars // _CHARS_A_WORD
        prompt = _PROMPT.format(words=words, goal=goal or "what the page is about", page=page)
        body = {"model": self._config.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        url = self._config.url.rstrip("/") + "/chat/completions"
        answer = await self._http.send(HttpRequest(url=url, method="POST", json=body, headers=self._headers))
        try:
            text = msgspec.convert(answer.json(), _Chat).choices[0].message.content
        except msgspec.ValidationError as error:
            raise UnavailableError(f"{url}: no summary came back: {error}") from None
        return text.strip()[: self._config.max_chars]

    async def aclose(self) -> None:
        await self._http.aclose()


def browse_tool(config: BrowseConfig, *, http: Http | None = None, summariser: Summariser | None = None) -> Tool:
    """The tool `browse(url, goal)`; `http` and `summariser` replace what the configuration names.

    Raises `ConfigError` for a network that is none, a missing key or a missing library.
    """
    check_installed()
    web = http or HttpClient(rule=AddressRule(allowed=config.allow_networks), max_connections=config.max_concurrency)
    if summariser is None and config.summary is not None:
        summariser = ChatSummariser(config.summary, http=HttpClient(max_connections=config.max_concurrency))

    async def aclose() -> None:
        await web.aclose()
        if summariser is not None:
            await summariser.aclose()

    @tool(timeout_s=config.timeout_s, max_concurrency=config.max_concurrency, aclose=aclose)
    async def browse(url: str, goal: str = "") -> str:
        """Read a web page. Returns its text, or what in it serves the goal."""
        page = await _fetch(url.strip(), config, web)
        return page if summariser is None else await summariser.summarise(page, goal=goal)

    return browse


async def _fetch(url: str, config: BrowseConfig, web: Http) -> str:
    request = HttpRequest(
        url=url if "://" in url else f"https://{url}",
        max_redirects=config.max_redirects,
        max_bytes=config.max_mib << 20,
        headers={"Accept": "text/html, text/plain;q=0.9, */*;q=0.1"},
    )
    try:
        answer = await web.send(request)
    except UnavailableError as error:
        # A site that does not answer says nothing about the next one: it does not count against the tool.
        raise ToolError(str(error)) from None
    text = await asyncio.to_thread(readable, answer)
    return text[: config.max_chars] + ("\n[cut: the page goes on]" if len(text) > config.max_chars else "")
