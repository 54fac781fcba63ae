"""The page in a real browser: live and static, with a tree of 10,000 nodes, without one error, and fluid."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from actors.run_dir import RunDir
from actors.view.run_view import RunView
from actors.view.server import WatchServer
from actors.view.trace import write_trace
from engine.journal import Journal
from tests.browser import CHROMIUM, MISSING, Page, browser
from tests.view_runs import a_config, large_tree, make_run, texts, whole_run

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]
VIEWS = ("overview", "trees", "timeline", "tools", "configuration")
SIZES = ((1440, 900, False), (1024, 700, True), (420, 800, False))
FRAMES = 90
IS_DRAWN = "arpo.surface.surfaces.some((one) => one.canvas.offsetParent && one.numFrames > 0)"
IS_READ = "document.querySelector('.stage h2') && document.querySelector('.stage .fine').textContent.includes('node')"

PAN = """
new Promise((done) => {
  const surface = arpo.surface.surfaces.find((one) => one.canvas.offsetParent);
  const before = {frames: surface.numFrames, ms: surface.drawMs};
  const gaps = [];
  let last = 0;
  const step = (now) => {
    if (last) gaps.push(now - last);
    last = now;
    if (gaps.length >= %d) {
      const drawn = surface.numFrames - before.frames;
      gaps.sort((a, b) => a - b);
      const at = (share) => gaps[Math.floor(gaps.length * share)];
      return done({drawn, draw: (surface.drawMs - before.ms) / drawn, median: at(0.5), p95: at(0.95)});
    }
    surface.pan(%d, %d);
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})
"""


def in_browser(story: Callable[[Page], Awaitable[None]]) -> None:
    """Tell a story in a browser; it ends well where the page has met no problem."""

    async def main() -> None:
        async with browser() as page:
            await story(page)
            assert page.problems == []

    asyncio.run(main())


@contextlib.asynccontextmanager
async def served(run: RunDir) -> AsyncGenerator[str, None]:
    server = WatchServer(RunView(run, texts=texts()))
    async with server.listening() as url:
        following = asyncio.create_task(server.follow())
        yield url
        assert not following.done(), "it follows for as long as it serves"
        following.cancel()


async def visit(page: Page, url: str, view: str, **looks: Any) -> None:
    await page.open("about:blank")
    await page.open(f"{url}#{view}", **looks)
    await page.until(f"arpo.store.state.run && !document.getElementById('view-{view.split('/')[0]}').hidden")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_view_of_a_served_run_is_shown_without_a_problem(size: tuple[int, int, bool], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", whole_run())
    width, height, is_dark = size

    async def story(page: Page) -> None:
        async with served(run) as url:
            for view in VIEWS:
                await visit(page, url, view, width=width, height=height, is_dark=is_dark)
                await page.until("arpo.store.state.steps.length === 12 && arpo.store.state.settings")
                if view in ("trees", "timeline"):
                    await page.until(IS_DRAWN)
                assert len(await page.screenshot()) > 5_000
                wide = await page.ask("document.documentElement.scrollWidth")
                assert wide <= width, f"{view} is wider than the window"

    in_browser(story)


def test_a_page_follows_a_run_that_is_being_written(tmp_path: Path) -> None:
    events = whole_run()
    half = len(events) // 2
    run = make_run(tmp_path / "run", events[:half])

    async def story(page: Page) -> None:
        async with served(run) as url:
            await visit(page, url, "overview")
            await page.until("arpo.store.state.mode === 'live' && arpo.store.state.steps.length > 0")
            assert await page.ask("document.querySelector('.status b').textContent") == "running"
            with Journal(run.journal) as journal:
                for event in events[half:]:
                    journal.append(event)
            await page.until("arpo.store.state.steps.length === 12")
            await page.until("document.querySelector('.status b').textContent === 'finished'")
            await page.until("document.querySelector('.tile .value').textContent === '12'")

    in_browser(story)


def test_the_static_page_is_whole_and_needs_no_server(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", whole_run(), config=a_config())
    target = write_trace(run, max_trees=6)

    async def story(page: Page) -> None:
        for view in VIEWS:
            await visit(page, target.as_uri(), view)
        await visit(page, target.as_uri(), "trees")
        await page.until(IS_READ)
        assert await page.ask("arpo.store.state.documents.size") == 6
        gone = "arpo.store.state.trees.find((row) => !arpo.store.state.documents.has(row.id)).id"
        await page.ask(f"location.hash = 'trees/' + {gone}")
        await page.until("document.querySelector('.stage > .empty').textContent.includes('not in this file')")

    in_browser(story)


def test_hostile_texts_are_shown_and_not_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", whole_run(num_steps=3))

    async def story(page: Page) -> None:
        async with served(run) as url:
            await visit(page, url, "trees/e0-r3")
            await page.until(IS_READ)
            surface = "document.querySelector('.view.trees canvas')"
            await page.ask(f"{surface}.focus()")
            where = await page.ask(
                f"(() => {{ const box = {surface}.getBoundingClientRect(); return [box.left + 40, box.top + 40]; }})()"
            )
            for kind in ("mousePressed", "mouseReleased"):
                await page.send(
                    "Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1
                )
            await page.until("document.querySelector('.reader .text i')")
            read = await page.ask("document.querySelector('.reader').textContent")
            assert "<script>alert(1)</script>" in read
            assert await page.ask("document.querySelectorAll('.reader script, .reader img, .stage img').length") == 0

    in_browser(story)


def test_a_tree_of_10000_nodes_stays_fluid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", list(large_tree("large", num_paths=3400)))
    told: list[str] = []

    async def story(page: Page) -> None:
        async with served(run) as url:
            await visit(page, url, "trees/large")
            await page.until(IS_READ)
            assert await page.ask("document.querySelectorAll('.view.trees *').length") < 1_000
            for zoom, dx, dy in ((1, -3, -9), (6, -5, -23), (60, -9, -40)):
                await page.ask(
                    "(() => { const one = arpo.surface.surfaces.find((one) => one.canvas.offsetParent); one.fit();"
                    f" one.zoom({zoom}, {zoom}, 300, 300); }})()"
                )
                found = await page.ask(PAN % (FRAMES, dx, dy))
                told.append(
                    f"zoom {zoom}: {found['draw']:.1f} ms to draw, a frame every {found['median']:.1f} ms, "
                    f"{found['p95']:.1f} ms at the 95th percentile"
                )
                assert found["drawn"] >= FRAMES // 2
                # Half a frame at 60 Hz on a quiet machine; what is asserted leaves room for a busy one.
                assert found["draw"] < 50

    in_browser(story)
    view = RunView(run, texts=texts())
    view.refresh_all()
    document = view.document("large")
    assert document is not None
    assert len(document.nodes["parent"]) >= 10_000
    with capsys.disabled():
        print("\n" + "\n".join(told))
