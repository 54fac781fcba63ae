"""Reading pages: what is text, what is cut, what is refused, and what a model makes of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from engine import config as configuration
from engine.errors import ConfigError
from engine.types import ToolCall, ToolResult
from tools.browse import BrowseConfig, browse_tool
from tools.config import ToolsConfig, build_executor
from tools.executor import Executor
from tools.local_site import Answer, LocalSite, Page, Visit

ARTICLE = """<!doctype html><html><head><title>Ulm Minster</title><script>var secret = 1;</script></head><body>
<nav><a href="/">Home</a> <a href="/about">About</a></nav>
<article><h1>Ulm Minster</h1>
<p>Ulm Minster is a Gothic church in the city of Ulm. Its steeple is 161.53 metres tall, which for more than a century
made it the tallest church in the world.</p>
<p>Construction began in 1377, in the Gothic style, and the building was not finished before the late 19th century, when
the steeple was completed at last.</p></article>
<footer>Imprint, cookies, newsletter</footer></body></html>"""


def read(answer: Answer, *paths: str, goal: str = "", **options: Any) -> list[ToolResult]:
    """What `browse` says of pages of a local site, which is allowed."""

    async def main() -> list[ToolResult]:
        async with LocalSite(answer) as site:
            config = BrowseConfig(**{"allow_networks": ("127.0.0.1/32",)} | options)
            async with Executor([browse_tool(config)], max_result_chars=10**6) as executor:
                arguments = [{"url": path if "://" in path else site.url + path} for path in paths]
                extra = {"goal": goal} if goal else {}
                return [await executor.call(ToolCall(name="browse", arguments=a | extra)) for a in arguments]

    return asyncio.run(main())


def test_a_page_is_read_as_a_person_would() -> None:
    (result,) = read(lambda seen: Page(content=ARTICLE), "/")
    assert result.status == "ok"
    assert result.text.startswith("Ulm Minster\n")
    assert "161.53 metres" in result.text
    assert "1377" in result.text
    for noise in ("secret", "cookies", "<p>"):
        assert noise not in result.text


def test_a_page_that_is_hardly_one_still_has_words_and_plain_text_is_left_alone() -> None:
    (short,) = read(lambda seen: Page(content="<title>T</title><style>p {}</style><p>Just&nbsp;a line.</p>"), "/")
    assert short.text.endswith("Just a line.")
    assert "{" not in short.text
    plain = Page(content="a <b> c", headers={"Content-Type": "text/plain"})
    assert read(lambda seen: plain, "/")[0].text == "a <b> c"


def test_long_pages_are_cut_and_say_so() -> None:
    page = Page(content="x" * 5000, headers={"Content-Type": "text/plain"})
    (result,) = read(lambda seen: page, "/", max_chars=100)
    assert result.text == "x" * 100 + "\n[cut: the page goes on]"


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(content=b"%PDF-1.7", headers={"Content-Type": "application/pdf"}), "a file of type application/pdf"),
        (Page(content="<html><script>app()</script></html>"), "the page has no text"),
        (Page(content="gone", status=404), "status 404: gone"),
        (Page(status=302, headers={"Location": "/again"}), "redirects more than 5 times"),
        (Page(content="", status=503), "status 503"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(page: Page, reason: str) -> None:
    (result,) = read(lambda seen: page, "/")
    assert (result.status, "\n" in result.text) == ("error", False)
    assert reason in result.text


def test_private_addresses_are_refused_at_once_and_behind_redirects() -> None:
    visits: list[Visit] = []

    def answer(seen: Visit) -> Page:
        visits.append(seen)
        # The second address is the same site by a name that is not allowed.
        port = seen.headers["host"].partition(":")[2]
        return Page(status=302, headers={"Location": f"http://127.0.0.2:{port}/secret"})

    urls = ("http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://10.0.0.1", "file:///etc/passwd")
    redirected, *direct = read(answer, "/", *urls)
    assert "127.0.0.2 is not a public address" in redirected.text
    assert [visit.path for visit in visits] == ["/"]
    assert [result.status for result in direct] == ["error"] * 4
    assert [" not allowed: " in result.text for result in direct] == [True, True, True, False]
    (refused,) = read(lambda seen: Page(content="secret"), "/", allow_networks=())
    assert "127.0.0.1 is not a public address" in refused.text


def test_many_dead_sites_do_not_close_the_way_to_the_next_one() -> None:
    results = read(lambda seen: Page(content=ARTICLE), *["http://127.0.0.1:1/"] * 9, "/")
    assert [result.status for result in results] == ["error"] * 9 + ["ok"]


class Echo:
    """A summariser that says what it was given."""

    def __init__(self) -> None:
        self.is_closed = False

    async def summarise(self, page: str, *, goal: str) -> str:
        return f"{goal}: {page[:11]}"

    async def aclose(self) -> None:
        self.is_closed = True


def test_a_summary_has_the_goal_in_mind() -> None:
    echo = Echo()

    async def main() -> ToolResult:
        async with LocalSite(lambda seen: Page(content=ARTICLE)) as site:
            tool = browse_tool(BrowseConfig(allow_networks=("127.0.0.1/32",)), summariser=echo)
            async with Executor([tool]) as executor:
                return await executor.call(ToolCall(name="browse", arguments={"url": site.url, "goal": "height"}))

    assert asyncio.run(main()).text == "height: Ulm Minster"
    assert echo.is_closed


def summed_up(chat: Callable[[Visit], Page], monkeypatch: pytest.MonkeyPatch) -> ToolResult:
    monkeypatch.setenv("CHAT_KEY", "s3cret")

    async def main() -> ToolResult:
        async with LocalSite(lambda seen: Page(content=ARTICLE)) as site, LocalSite(chat) as model:
            summary = {"url": f"{model.url}/v1/", "model": "m", "key_env": "CHAT_KEY", "max_chars": 60}
            section = {"browse": {"summary": summary, "allow_networks": ["127.0.0.1/32"]}}
            async with build_executor(configuration.decode(section, ToolsConfig, source="test")) as executor:
                arguments = {"url": site.url, "goal": "How tall is it?"}
                return await executor.call(ToolCall(name="browse", arguments=arguments))

    return asyncio.run(main())


def test_a_model_behind_the_usual_interface_sums_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Visit] = []

    def chat(seen: Visit) -> Page:
        asked.append(seen)
        return Page(content={"choices": [{"index": 0, "message": {"role": "assistant", "content": " 161.53 m " * 20}}]})

    result = summed_up(chat, monkeypatch)
    assert (result.status, len(result.text)) == ("ok", 60)
    (seen,) = asked
    assert (seen.path, seen.headers["authorization"]) == ("/v1/chat/completions", "Bearer s3cret")
    body = seen.json()
    assert body["model"] == "m"
    assert "at most 10 words" in body["messages"][0]["content"]
    assert "How tall is it?" in body["messages"][0]["content"]
    assert "161.53 metres" in body["messages"][0]["content"]


def test_a_model_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = summed_up(lambda seen: Page(content={"choices": []}), monkeypatch)
    assert result.status == "error"
    assert "no summary came back" in result.text


def test_networks_and_keys_are_checked_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAT_KEY", raising=False)
    summary = {"url": "http://127.0.0.1:9", "model": "m", "key_env": "CHAT_KEY"}
    for section, reason in (
        ({"allow_networks": ["10.0.0.1/8"]}, "10.0.0.1/8 has host bits set"),
        ({"summary": summary}, "the environment variable CHAT_KEY is not set"),
    ):
        with pytest.raises(ConfigError) as error:
            build_executor(configuration.decode({"browse": section}, ToolsConfig, source="test"))
        assert str(error.value) == f"{reason} - at $.tools.browse"
