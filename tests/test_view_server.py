"""`arpo watch`: who may look, and that a page is told of a run while it is written."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientSession, CookieJar

from actors.view.run_view import RunView
from actors.view.server import WatchServer
from engine.errors import ConfigError
from engine.events import AnyEvent, PromptAdmitted
from engine.journal import Journal
from engine.loopback import is_loopback
from tests.view_runs import HOSTILE, make_run, texts, whole_run

EVENTS = whole_run(num_steps=3, num_groups=3, is_finished=False)
pytestmark = pytest.mark.timeout(60)

TOKEN = "a-token-of-some-length"


@asynccontextmanager
async def watched(folder: Path, events: list[AnyEvent], *, token: str | None = None) -> AsyncGenerator[str, None]:
    view = RunView(make_run(folder, events), texts=texts())
    server = WatchServer(view, token=token)
    async with server.listening() as url:
        following = asyncio.create_task(server.follow())
        yield url
        assert not following.done(), "it follows for as long as it serves"
        following.cancel()


async def told(stream: aiohttp.StreamReader) -> dict[str, Any]:
    """The next event of a stream."""
    lines: list[str] = []
    while (line := (await asyncio.wait_for(stream.readline(), 10)).decode()) != "\n":
        lines.append(line)
    assert lines[0].startswith("id: ")
    return json.loads(lines[1].removeprefix("data: "))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_token(host: str, tmp_path: Path) -> None:
    WatchServer(RunView(make_run(tmp_path / "run", EVENTS[:5])), host=host)
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", ""])
def test_what_others_can_reach_needs_a_token_of_some_length(host: str, tmp_path: Path) -> None:
    view = RunView(make_run(tmp_path / "run", EVENTS[:5]))
    with pytest.raises(ConfigError, match="a token is needed"):
        WatchServer(view, host=host)
    with pytest.raises(ConfigError, match="16 ASCII characters"):
        WatchServer(view, host=host, token="short")
    WatchServer(view, host=host, token=TOKEN)


def test_without_the_token_nothing_is_answered_and_with_it_once_a_cookie_is_enough(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path / "run", EVENTS, token=TOKEN) as url:
            base = url.split("?")[0]
            assert url == f"{base}?token={TOKEN}"
            async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
                for path in (
                    "",
                    "api/state",
                    "api/stream",
                    "api/settings",
                    "api/trees/e0-r0",
                    "?token=a-token-of-some",
                ):
                    async with session.get(base + path) as answer:
                        assert answer.status == 401
                        assert TOKEN not in await answer.text()
                async with session.get(url) as answer:
                    assert (answer.status, str(answer.url)) == (200, base), "the token leaves the address"
                    cookie = answer.history[0].headers["Set-Cookie"]
                    assert "HttpOnly" in cookie
                    assert "SameSite=Lax" in cookie
                async with session.get(base + "api/state") as answer:
                    assert answer.status == 200

    asyncio.run(main())


def test_a_page_of_another_site_cannot_read_it_under_its_own_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path / "run", EVENTS) as url, ClientSession() as session:
            port = url.rstrip("/").rpartition(":")[2]
            for host, status in (
                (f"evil.example:{port}", 403),
                ("127.0.0.1.evil.example", 403),
                (f"localhost:{port}", 200),
                (f"[::1]:{port}", 200),
            ):
                async with session.get(url + "api/state", headers={"Host": host}) as answer:
                    assert answer.status == status, host

    asyncio.run(main())


def test_the_page_comes_with_its_policy_and_may_not_be_framed_or_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path / "run", EVENTS) as url, ClientSession() as session, session.get(url) as answer:
            rules = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in rules
            assert "frame-ancestors 'none'" in rules
            assert "unsafe" not in rules
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"

    asyncio.run(main())


def test_a_stream_tells_everything_first_and_then_what_is_new_as_the_run_goes_on(tmp_path: Path) -> None:
    half = len(EVENTS) // 2

    async def main() -> None:
        async with watched(tmp_path / "run", EVENTS[:half]) as url, ClientSession() as session:
            async with session.get(url + "api/stream") as answer:
                assert answer.content_type == "text/event-stream"
                first = await told(answer.content)
                while not first.get("trees"):
                    first = await told(answer.content)
                known = {row["id"] for row in first["trees"]}
                with Journal(tmp_path / "run" / "journal") as journal:
                    for event in EVENTS[half:]:
                        journal.append(event)
                expected = {event.prompt_id for event in EVENTS if isinstance(event, PromptAdmitted)}
                while known != expected:
                    later = await told(answer.content)
                    assert not later["is_whole"]
                    known |= {row["id"] for row in later.get("trees", [])}
            cursor = later["cursor"]
            async with session.get(url + "api/stream", headers={"Last-Event-ID": cursor}) as answer:
                again = await told(answer.content)
                assert not again["is_whole"], "a connection that was lost goes on where it was"

    asyncio.run(main())


def test_a_tree_is_answered_with_its_texts_and_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path / "run", EVENTS) as url, ClientSession() as session:
            async with session.get(url + "api/stream") as answer:
                while not (await told(answer.content)).get("trees"):
                    pass
            async with session.get(url + "api/trees/e0-r3") as answer:
                found = json.loads(await answer.text())["document"]
                assert found["id"] == "e0-r3"
                assert any(HOSTILE in text for text in found["tokens"]["text"])
            for name in ("e7-r7", "..%2F..%2Fconfig.json", "%00"):
                async with session.get(url + "api/trees/" + name) as answer:
                    assert answer.status == 404

    asyncio.run(main())


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path / "run", EVENTS) as url:
            port = int(url.rstrip("/").rpartition(":")[2])
            other = WatchServer(RunView(make_run(tmp_path / "other", EVENTS[:5])), port=port)
            with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: .* - at --port"):
                async with other.listening():
                    pass

    asyncio.run(main())


@pytest.mark.real
def test_the_command_says_where_it_serves_and_ends_in_order_when_it_is_interrupted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", EVENTS[:20])
    command = [sys.executable, "-m", "actors.cli", "watch", str(run.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert re.fullmatch(rf"{re.escape(str(run.path))} at http://127\.0\.0\.1:\d+/\n", said)
            with urllib.request.urlopen(said.split()[-1], timeout=20) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
