"""HTTP out: what becomes of answers, which addresses are reached, and endpoints as tools; over real sockets."""

import asyncio
import contextlib
import gzip
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine.errors import ConfigError, ToolError
from engine.types import ToolCall, ToolResult, ToolSpec
from tools.addresses import AddressRule
from tools.endpoint import EndpointConfig, endpoint_tool
from tools.executor import Executor
from tools.http import HttpClient, HttpRequest
from tools.json_schema import argument_check
from tools.local_site import Answer, LocalSite, Page, Visit
from tools.schema import MalformedCallError, UnavailableError


def visit(answer: Answer, main: Callable[[LocalSite, HttpClient], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        client = HttpClient(**options)
        async with LocalSite(answer) as site:
            try:
                return await main(site, client)
            finally:
                await client.aclose()

    return asyncio.run(run())


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


# -- requests ---------------------------------------------------------------------------------------------------------


def test_json_goes_out_and_comes_back_and_connections_are_kept() -> None:
    async def main(site: LocalSite, client: HttpClient) -> None:
        for _ in range(3):
            request = HttpRequest(url=f"{site.url}/a", method="POST", json={"q": "ü"}, query={"x": "1 2"})
            assert (await client.send(request)).json() == {"got": {"q": "ü"}}
        assert len({tuple(v.headers.items()) for v in site.visits}) == 1
        assert (site.visits[0].path, site.visits[0].query) == ("/a", {"x": "1 2"})
        assert site.visits[0].headers["content-type"] == "application/json"

    visit(lambda seen: Page(content={"got": seen.json()}), main)


@pytest.mark.parametrize(
    ("page", "kind", "message"),
    [
        (Page(content="busy\nvery", status=503), UnavailableError, "/x: status 503: busy"),
        (Page(content="slow down", status=429, headers={"Retry-After": "7"}), UnavailableError, "status 429"),
        (Page(content="who are you", status=401), ToolError, "/x: status 401: who are you"),
        (Page(status=404), ToolError, "/x: status 404: nothing"),
        (Page(status=302, headers={"Location": "/y"}), ToolError, "/x: redirects to /y"),
    ],
)
def test_a_bad_status_says_whose_fault_it_is(page: Page, kind: type[ToolError], message: str) -> None:
    async def main(site: LocalSite, client: HttpClient) -> ToolError:
        with pytest.raises(ToolError, match=message) as caught:
            await client.send(HttpRequest(url=f"{site.url}/x?key=secret"))
        assert "secret" not in str(caught.value)
        return caught.value

    error = visit(lambda seen: page, main)
    assert type(error) is kind
    if isinstance(error, UnavailableError):
        assert error.retry_after_s == (7.0 if page.status == 429 else 0.0)


def test_nobody_there_and_no_address_are_told_apart() -> None:
    async def main(site: LocalSite, client: HttpClient) -> None:
        with pytest.raises(UnavailableError, match="127"):
            await client.send(HttpRequest(url=f"http://127.0.0.1:{free_port()}/"))
        with pytest.raises(UnavailableError, match="nowhere"):
            await client.send(HttpRequest(url="http://nowhere.invalid/"))
        for url in ("ftp://example.org/", "file:///etc/passwd", "no url", ""):
            with pytest.raises(ToolError, match="no address of the web") as caught:
                await client.send(HttpRequest(url=url))
            assert not isinstance(caught.value, UnavailableError)

    visit(lambda seen: Page(), main)


def test_no_more_is_read_than_was_asked_for_even_where_it_was_compressed() -> None:
    packed = Page(content=gzip.compress(b"x" * 5_000_000), headers={"Content-Encoding": "gzip"})

    async def main(site: LocalSite, client: HttpClient) -> None:
        answer = await client.send(HttpRequest(url=site.url, max_bytes=1000))
        assert (answer.body, answer.is_cut) == (b"x" * 1000, True)
        answer = await client.send(HttpRequest(url=site.url, max_bytes=5_000_000))
        assert (len(answer.body), answer.is_cut) == (5_000_000, False)

    visit(lambda seen: packed, main)


def test_what_is_no_json_is_the_hosts_fault() -> None:
    async def main(site: LocalSite, client: HttpClient) -> None:
        with pytest.raises(UnavailableError, match="no JSON came back: <h1>Proxy</h1>"):
            (await client.send(HttpRequest(url=site.url))).json()

    visit(lambda seen: Page(content="<h1>Proxy</h1>"), main)


def test_redirects_are_followed_as_often_as_was_allowed() -> None:
    def answer(seen: Visit) -> Page:
        left = int(seen.path[1:])
        return Page(status=302, headers={"Location": f"/{left - 1}"}) if left else Page(content="here")

    async def main(site: LocalSite, client: HttpClient) -> None:
        answer = await client.send(HttpRequest(url=f"{site.url}/3", max_redirects=3))
        assert (answer.text, answer.url) == ("here", f"{site.url}/0")
        with pytest.raises(ToolError, match="redirects more than 3 times"):
            await client.send(HttpRequest(url=f"{site.url}/4", max_redirects=3))

    visit(answer, main)


# -- addresses --------------------------------------------------------------------------------------------------------

# fmt: off
FORBIDDEN = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1",
    "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1", "localhost", "1.2.3",
    "2001:0:7f00:1:0:0:f5ff:fffe",
]
# fmt: on


@pytest.mark.parametrize("address", FORBIDDEN)
def test_what_is_not_public_is_refused_in_every_disguise(address: str) -> None:
    assert not AddressRule().permits(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::"],
)
def test_public_addresses_are_permitted(address: str) -> None:
    assert AddressRule().permits(address)


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_what_it_maps_to(address: Any) -> None:
    rule = AddressRule(allowed=["10.0.0.0/8"])
    assert rule.permits(f"::ffff:{address}") == rule.permits(str(address))


def test_an_allowed_network_is_permitted_and_nonsense_is_an_error() -> None:
    rule = AddressRule(allowed=["127.0.0.0/8", "fd00::/8"])
    assert [rule.permits(a) for a in ("127.0.0.1", "fd00::1", "10.0.0.1")] == [True, True, False]
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1/8"):
        AddressRule(allowed=["10.0.0.1/8"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f000001", "2130706433", "127.1"])
def test_the_address_that_is_connected_to_is_what_counts_however_it_was_written(host: str) -> None:
    async def main(site: LocalSite, client: HttpClient) -> None:
        with pytest.raises(ToolError, match=r"not a public address|no address of the web"):
            await client.send(HttpRequest(url=f"http://{host}:{site.port}/", max_redirects=5))
        assert site.visits == []

    visit(lambda seen: Page(content="secret"), main, rule=AddressRule())


def test_a_redirect_to_a_private_address_is_refused_at_that_redirect() -> None:
    async def main(site: LocalSite, client: HttpClient) -> None:
        async with LocalSite(lambda seen: Page(content="secret")) as inner:
            target = f"http://127.0.0.2:{inner.port}/"
            site_answers[0] = Page(status=302, headers={"Location": target})
            with pytest.raises(ToolError, match=r"127\.0\.0\.2 is not a public address"):
                await client.send(HttpRequest(url=site.url, max_redirects=5))
            assert (len(site.visits), inner.visits) == (1, [])

    site_answers = [Page()]
    visit(lambda seen: site_answers[0], main, rule=AddressRule(allowed=["127.0.0.1/32"]))


# -- endpoints --------------------------------------------------------------------------------------------------------

WEATHER = {
    "name": "weather",
    "description": "Forecast for a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "default": 2}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def forecast(answer: Answer, *calls: dict[str, Any], **options: Any) -> tuple[list[ToolResult], list[Visit]]:
    async def main() -> tuple[list[ToolResult], list[Visit]]:
        async with LocalSite(answer) as site:
            config = EndpointConfig(**WEATHER, url=f"{site.url}/forecast", **options)
            async with Executor([endpoint_tool(config)]) as executor:
                calls_ = [executor.call(ToolCall(name="weather", arguments=arguments)) for arguments in calls]
                return [await call for call in calls_], site.visits

    return asyncio.run(main())


def test_an_endpoint_gets_typed_arguments_and_its_answer_is_the_result() -> None:
    def answer(seen: Visit) -> Page:
        return Page(content={"sky": f"{seen.json()['city']} {seen.json()['days']}"})

    results, visits = forecast(answer, {"city": "Ulm", "days": "3"}, {"city": "Ulm"}, result_key="sky")
    assert [r.text for r in results] == ["Ulm 3", "Ulm 2"]
    assert [v.json() for v in visits] == [{"city": "Ulm", "days": 3}, {"city": "Ulm", "days": 2}]
    assert visits[0].method == "POST"
    (whole,), _ = forecast(answer, {"city": "Ulm"})
    assert whole.text == '{"sky":"Ulm 2"}'
    (plain,), _ = forecast(lambda seen: Page(content="rain"), {"city": "Ulm"})
    assert plain.text == "rain"


def test_wrong_arguments_reach_no_endpoint_and_are_explained() -> None:
    results, visits = forecast(lambda seen: Page(), {}, {"city": "Ulm", "days": "0"}, {"city": "Ulm", "when": 1})
    assert [r.status for r in results] == ["malformed"] * 3
    assert visits == []
    assert results[0].text == "weather: 'city' is a required property. Arguments: city, days."
    assert results[1].text == "weather: days: 0 is less than the minimum of 1. Arguments: city, days."
    assert "'when' was unexpected" in results[2].text


def test_an_endpoint_that_is_down_is_tried_again_where_that_does_no_harm() -> None:
    pages = iter([Page(status=503), Page(content="rain"), Page(status=503)])
    results, visits = forecast(lambda seen: next(pages), {"city": "Ulm"}, is_idempotent=True, max_retries=1)
    assert ([r.text for r in results], len(visits)) == (["rain"], 2)
    (failed,), _ = forecast(lambda seen: next(pages), {"city": "Ulm"})
    assert (failed.status, failed.text.partition("/forecast")[2]) == ("error", ": status 503: nothing")


def test_a_missing_result_key_is_said() -> None:
    (result,), _ = forecast(lambda seen: Page(content=[1]), {"city": "Ulm"}, result_key="sky")
    assert (result.status, result.text) == ("error", "weather: what came back has no key 'sky'")


def test_a_key_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_KEY", "s3cret")
    _, visits = forecast(lambda seen: Page(), {"city": "Ulm"}, key_env="WEATHER_KEY")
    assert visits[0].headers["authorization"] == "Bearer s3cret"
    monkeypatch.delenv("WEATHER_KEY")
    with pytest.raises(ConfigError, match="the environment variable WEATHER_KEY is not set"):
        forecast(lambda seen: Page(), {"city": "Ulm"}, key_env="WEATHER_KEY")


# -- schemas ----------------------------------------------------------------------------------------------------------


def checked(parameters: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return argument_check(ToolSpec(name="t", description="T.", parameters=parameters))(arguments)


def test_text_becomes_what_the_schema_asks_for_and_stays_text_where_that_is_asked_for() -> None:
    kinds = {"n": "number", "b": "boolean", "a": "array", "o": "object", "s": "string", "u": ["integer", "null"]}
    schema = {"type": "object", "properties": {name: {"type": kind} for name, kind in kinds.items()}}
    assert checked(schema, n="1.5", b="True", a="[1]", o='{"k": 1}', s="3", u="null", other="7") == {
        "n": 1.5,
        "b": True,
        "a": [1],
        "o": {"k": 1},
        "s": "3",
        "u": None,
        "other": "7",
    }
    with pytest.raises(MalformedCallError, match="n: 'many' is not of type 'number'"):
        checked(schema, n="many")
    with pytest.raises(MalformedCallError, match="a: "):
        checked(schema, a="[" * 100_000)


@pytest.mark.parametrize("schema", [{}, {"type": "string"}, {"type": "object", "properties": {"a": {"type": "sting"}}}])
def test_what_is_no_schema_of_an_object_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tool t: "):
        checked(schema)


@given(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3))
def test_any_arguments_are_good_or_malformed(arguments: dict[str, str]) -> None:
    with contextlib.suppress(MalformedCallError):
        assert checked(WEATHER["parameters"], **{"city": "Ulm"} | arguments)["city"]
