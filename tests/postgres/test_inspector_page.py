"""The inspector's page in a real browser, if there is one."""

from __future__ import annotations

import asyncio
import copy
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import AsyncConnectionPool, within
from asyncpool.inspector import Inspector

from ._tools import Proxy, eventually, overloaded
from .test_inspector import served

playwright = pytest.importorskip("playwright.async_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)
EVIL = "<img src=x onerror=\"document.title='caught'\">'\"&amp;"

pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no Chromium on this machine")

each_screen = pytest.mark.parametrize(
    ("width", "scheme"), [(1100, "light"), (360, "dark")], ids=["wide", "phone"]
)


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as play:
        browser = await play.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def visit(
    browser: Any, app: Any, width: int = 1100, scheme: str = "light"
) -> AsyncIterator[Any]:
    """A visit to an inspector's page, on which no script fails and nothing else is loaded."""
    async with served(app) as url:
        page = await browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(url)
        yield page
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not await page.evaluate(wide), "the page scrolls sideways"
        assert said == []
        assert all(each.startswith((url, "data:")) for each in asked)
        await page.close()


def inspector(*pools: AsyncConnectionPool) -> Inspector:
    return Inspector(pools, authorize=lambda scope: True, interval=0.05)


def expect(page: Any, selector: str) -> Any:
    return playwright.expect(page.locator(selector))


@each_screen
@pytest.mark.exhaustive
async def test_the_page_shows_leases_and_waiters(
    dsn: str, browser: Any, width: int, scheme: str
) -> None:
    """The page updates live, shows a lease's stack on a click, and escapes task names."""
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=2, leak_timeout=60, name="shop"
    ) as pool:
        done = asyncio.Event()

        async def refund() -> None:
            conn = await pool.acquire()
            await conn.execute("SELECT %s::text AS amount", ["a secret"])
            await done.wait()
            await pool.release(conn)

        async def wait() -> None:
            async with pool.connection():
                pass

        holder = asyncio.create_task(refund(), name=EVIL)
        await eventually(lambda: any(each.last_sql for each in pool.explain().leases))
        async with visit(browser, inspector(pool), width, scheme) as page:
            await expect(page, "#badge").to_have_text("OK")
            await expect(page, "#t-in-use").to_have_text("1 / 2")
            await expect(page, "#leases tbody tr").to_have_count(1)
            await expect(page, "#leases tbody tr").to_contain_text(EVIL)
            await expect(page, "#leases tbody tr").to_contain_text("in transaction")
            other = await pool.acquire()
            waiting = asyncio.create_task(wait(), name="GET /orders/7")
            await expect(page, "#queue li").to_contain_text("GET /orders/7")
            await expect(page, "#badge").to_have_text("DEGRADED")
            await expect(page, "#reason").to_contain_text("1 request waits")
            await expect(page, "#notes").to_contain_text("all connections are in use")
            await page.locator("#leases tbody button").first.focus()
            await page.keyboard.press("Enter")
            await expect(page, "#lease").to_contain_text(EVIL)
            await expect(page, "#lease").to_contain_text("test_inspector_page.py")
            await expect(page, "#lease").to_contain_text("SELECT %s::text AS amount")
            await page.keyboard.press("Escape")
            await expect(page, "#lease").to_be_hidden()
            await pool.release(other)
            await waiting
            await expect(page, "#no-queue").to_be_visible()
            await expect(page, "#badge").to_have_text("OK")
            await expect(page, "#wait-read").to_contain_text("p99")
            done.set()
            await holder
            await expect(page, "#t-in-use").to_have_text("0 / 2")
            assert await page.title() == "OK - shop: 0 of 2 in use"
            assert "a secret" not in await page.locator("body").inner_text()


@each_screen
@pytest.mark.exhaustive
async def test_an_overload_is_shown_with_the_queue(
    dsn: str, browser: Any, width: int, scheme: str
) -> None:
    """How many were refused, how long the others wait, and who has a priority."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="shop") as pool,
        visit(browser, inspector(pool), width, scheme) as page,
    ):
        await expect(page, "#badge").to_have_text("OK")
        async with overloaded(pool, refusals=3):
            await expect(page, "#t-queue-of").to_contain_text("expected wait")
            await expect(page, "#t-queue-of").to_contain_text("3 refused")
            await expect(page, "#queue-count").to_contain_text("not empty for")
            await expect(page, "#queue-count").to_contain_text("3 refused in the last")
            await expect(page, "#notes").to_contain_text("requests were refused")
        await expect(page, "#no-queue").to_be_visible()
        async with pool.connection():
            with within(priority=7, flow="acme"):
                waiting = asyncio.create_task(pool.getconn())
            await expect(page, "#queue li").to_contain_text("priority 7")
            await expect(page, "#queue li").to_contain_text("flow acme")
        await pool.putconn(await waiting)


@each_screen
@pytest.mark.exhaustive
async def test_the_badge_tells_of_an_outage(
    dsn: str, browser: Any, width: int, scheme: str
) -> None:
    """DOWN with the last error while the server is away, for each pool in the selector."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(dsn, min_size=1, name="fine") as fine,
        AsyncConnectionPool(proxy.dsn, min_size=1, name="broken") as broken,
    ):
        await broken.wait()
        async with visit(browser, inspector(fine, broken), width, scheme) as page:
            await expect(page, "#pools option").to_have_text(["fine - OK", "broken - OK"])
            port, proxy._port = proxy._port, 1  # where nothing listens
            proxy.cut()
            await expect(page, "#pools option").to_have_text(["fine - OK", "broken - DOWN"])
            await expect(page, "#badge").to_have_text("OK")
            await expect(page, "#elsewhere").to_have_text("also: broken DOWN")
            await page.select_option("#pools", "broken")
            await expect(page, "#badge").to_have_text("DOWN")
            await expect(page, "#badge").to_have_attribute("data-status", "down")
            await expect(page, "#reason").to_have_text("no connection")
            await expect(page, "#notes").to_contain_text("connecting has been failing for")
            await expect(page, "#notes").to_contain_text("last error")
            await expect(page, "#t-connects").not_to_have_text("0")
            assert (await page.title()).startswith("DOWN - broken")
            proxy._port = port
            await expect(page, "#badge").to_have_text("OK")


@pytest.mark.exhaustive
async def test_an_app_that_does_not_answer_is_not_called_ok(dsn: str, browser: Any) -> None:
    """The last snapshot stays, marked as old."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        allowed = True
        app = Inspector(pool, authorize=lambda scope: allowed, interval=0.05)
        app._feed._stream_duration = 0.1
        async with served(app) as url:
            page = await browser.new_page()
            await page.goto(url)
            await expect(page, "#badge").to_have_text("OK")
            allowed = False
            await expect(page, "#badge").to_have_text("NO ANSWER")
            await expect(page, "#reason").to_contain_text("what follows is old")
            await page.close()


@pytest.mark.exhaustive
async def test_the_page_can_pause(dsn: str, browser: Any) -> None:
    """While it is paused it reads nothing, and it shows what came last."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        app = inspector(pool)
        async with visit(browser, app) as page:
            await expect(page, "#t-in-use").to_have_text("0 / 1")
            await page.get_by_role("button", name="Pause").click()
            await expect(page, "#live").to_contain_text("paused at")
            conn = await pool.acquire()
            for _ in range(10):
                await app._feed.next()
            await expect(page, "#t-in-use").to_have_text("0 / 1")
            await page.get_by_role("button", name="Resume").click()
            await expect(page, "#t-in-use").to_have_text("1 / 1")
            await expect(page, "#live").to_have_text("live")
            await pool.release(conn)


@each_screen
@pytest.mark.exhaustive
async def test_a_thousand_leases_can_be_sorted_and_filtered(
    dsn: str, browser: Any, width: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred rows at a time."""
    async with AsyncConnectionPool(dsn, min_size=1, leak_timeout=60, name="shop") as pool:
        app = inspector(pool)
        shown_by = app._feed._shown

        def thousand(name: str, pool: Any, *, whole: bool) -> dict[str, Any]:
            shown = shown_by(name, pool, whole=whole)
            (one,) = shown["connections"]
            found = []
            for number in range(1000):
                each = copy.deepcopy(one) | {"number": number}
                each["lease"] |= {"age": 2000.0 - number, "label": f"GET /{number:03}"}
                each["lease"]["last_sql"] = f"SELECT {999 - number:03}"
                found.append(each)
            shown["connections"] = found
            shown["stats"] |= {"leased": 1000, "size": 1000, "max_size": 1000}
            return shown

        monkeypatch.setattr(app._feed, "_shown", thousand)
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            async with visit(browser, app, width, scheme) as page:
                await expect(page, "#t-in-use").to_have_text("1000 / 1000")
                rows = page.locator("#leases tbody tr")
                await playwright.expect(rows).to_have_count(100)
                await playwright.expect(rows.first).to_contain_text("GET /000")
                head = page.locator("#leases thead")
                await head.get_by_role("button", name="Query").click()
                await playwright.expect(rows.first).to_contain_text("GET /999")
                await head.get_by_role("button", name="Query").click()
                await playwright.expect(rows.first).to_contain_text("GET /000")
                await expect(page, "th[data-key=query]").to_have_attribute(
                    "aria-sort", "descending"
                )
                await head.get_by_role("button", name="Route").click()
                await playwright.expect(rows.first).to_contain_text("GET /000")
                await page.get_by_role("button", name=re.compile("Show more: 900")).click()
                await playwright.expect(rows).to_have_count(200)
                await page.get_by_label("Filter").fill("get /77")
                await playwright.expect(rows).to_have_count(10)
                await expect(page, "#lease-count").to_have_text("10 of 1000 in use")


@pytest.mark.exhaustive
async def test_a_page_whose_snapshots_are_rare_is_not_without_an_answer(
    dsn: str, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a big pool may be further apart than the page waits for an answer, which is 5 s."""
    monkeypatch.setattr("asyncpool.inspector._feed.SHARE", 1e-9)
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="shop") as pool,
        visit(browser, inspector(pool)) as page,
    ):
        await expect(page, "#live").to_have_text("live")
        late = re.compile(r"as of [6-9]\.\d s ago")
        await expect(page, "#live").to_contain_text(late, timeout=15_000)
        await expect(page, "#badge").to_have_text("OK")


@pytest.mark.exhaustive
async def test_the_charts_have_units_and_can_be_read(dsn: str, browser: Any) -> None:
    """By the pointer and by the arrow keys; the queue has a strip and a scale of its own."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, name="shop") as pool:
        for _ in range(20):
            await pool.execute("SELECT pg_sleep(0.002)")
        app = inspector(pool)
        async with visit(browser, app) as page:
            for _ in range(3):
                async with pool.connection() as conn:
                    await conn.execute("SELECT pg_sleep(0.02)")
            await expect(page, "#hold-read").to_contain_text("p99")
            # The page's own look at the server's sessions may be one more.
            await expect(page, "#t-hold-of").to_contain_text(re.compile("[34] leases, last"))
            await expect(page, "#hold").to_contain_text("10 ms")
            await expect(page, "#timeline").to_contain_text("queue (requests)")
            await expect(page, "#timeline").to_contain_text("max_size 1")
            await expect(page, "#timeline-read").to_have_text(re.compile("^now: 0 in use, 1 conn"))
            await page.locator("#timeline").hover()
            await expect(page, "#timeline-read").to_have_text(re.compile(r"^\d.*: \d in use"))
            await page.locator("#hold").focus()
            await page.keyboard.press("Home")
            await expect(page, "#hold-read").to_have_text(re.compile("none of [34] took about"))


@pytest.mark.exhaustive
async def test_each_worker_says_who_it_is(dsn: str, browser: Any) -> None:
    """When another process answers, the page says that it has seen two."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        app = inspector(pool)
        app._feed._stream_duration = 0.1
        async with visit(browser, app) as page:
            await expect(page, "#who").to_contain_text(re.compile(r"process \d+ on .+, up"))
            await expect(page, "#workers").to_contain_text("a reload may reach it")
            await expect(page, "#workers").to_contain_text(
                re.compile(r"The server has \d+ session")
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "asyncpool.inspector._feed.identity",
                    lambda: {"host": "web-2", "pid": 7, "uptime": 5.0},
                )
                await expect(page, "#who").to_contain_text(
                    "process 7 on web-2, one of 2 that have answered, up"
                )
                await expect(page, "#workers").to_contain_text("2 processes have answered")
