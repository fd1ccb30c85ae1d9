"""The inspector's page in a real browser, if there is one."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asyncpool import AsyncConnectionPool
from asyncpool.inspector import Inspector

from ._tools import eventually
from .test_inspector import served

playwright = pytest.importorskip("playwright.async_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)
EVIL = "<img src=x onerror=\"document.title='caught'\">'\"&amp;"

pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no Chromium on this machine")


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as play:
        browser = await play.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [(1100, "light"), (360, "dark")], ids=["wide", "phone"]
)
async def test_the_page_shows_leases_and_waiters(  # noqa: PLR0915 - one visit to the page
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
        app = Inspector(pool, authorize=lambda scope: True, interval=0.05)
        async with served(app) as url:
            page = await browser.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            )
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            await page.goto(url)
            expect = playwright.expect
            await expect(page.locator("#live")).to_have_text("live")
            await expect(page.locator("#t-leased")).to_have_text("1 / 2")
            await expect(page.locator("#cells button")).to_have_count(1)
            await expect(page.locator("#cells button")).to_contain_text(EVIL)
            other = await pool.acquire()
            waiting = asyncio.create_task(wait(), name="GET /orders/7")
            await expect(page.locator("#queue li")).to_contain_text("GET /orders/7")
            await expect(page.locator("#notes")).to_contain_text("all connections are in use")
            await page.locator("#cells button").first.focus()
            await page.keyboard.press("Enter")
            lease = page.locator("#lease")
            await expect(lease).to_contain_text(EVIL)
            await expect(lease).to_contain_text("test_inspector_page.py")
            await expect(lease).to_contain_text("SELECT %s::text AS amount")
            await page.keyboard.press("Escape")
            await expect(lease).to_be_hidden()
            await pool.release(other)
            await waiting
            await expect(page.locator("#no-queue")).to_be_visible()
            await expect(page.locator("#wait-count")).not_to_have_text("")
            await expect(page.locator("#timeline path.leased")).to_have_attribute(
                "d", re.compile("L")
            )
            done.set()
            await holder
            await expect(page.locator("#t-leased")).to_have_text("0 / 2")
            assert await page.title() == "0/2 shop"
            text = await page.locator("body").inner_text()
            assert "a secret" not in text
            wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not await page.evaluate(wide), "the page scrolls sideways"
            assert said == []
            assert all(each.startswith((url, "data:")) for each in asked)
            await page.close()
