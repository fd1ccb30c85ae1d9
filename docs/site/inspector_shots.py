"""Take the pictures of the inspector in docs/: python docs/site/inspector_shots.py

It needs playwright and a Chromium on the machine. The pool is at work on a server of its own: many
short requests, one report that is slow, and a branch that forgets to return its connection.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import uvicorn
from playwright.async_api import async_playwright

from asyncpool import AsyncConnectionPool
from asyncpool.inspector import Inspector
from asyncpool.testing import postgres

DOCS = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))


async def look_up(pool: AsyncConnectionPool) -> None:
    """A request as most are."""
    async with pool.connection() as conn:
        await conn.execute("SELECT pg_sleep(%s)", [random.expovariate(1 / 0.02)])


async def nightly_report(pool: AsyncConnectionPool) -> None:
    """One that hogs a connection."""
    async with pool.connection() as conn:
        await conn.execute("SELECT count(*), pg_sleep(90) FROM generate_series(1, 1000)")


async def refund(pool: AsyncConnectionPool) -> None:
    """One that forgets `release` in a rare branch."""
    conn = await pool.acquire()
    await conn.execute(
        "SELECT amount FROM pg_class, (SELECT 5 AS amount) a WHERE relname = %s", ["x"]
    )
    await asyncio.sleep(3600)


async def load(pool: AsyncConnectionPool) -> None:
    """Arrivals in waves."""
    tasks = set()
    for number in range(10_000):
        wave = 1 + (number // 400) % 3
        task = asyncio.create_task(look_up(pool), name=f"GET /orders/{random.randrange(9000)}")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(random.expovariate(60 * wave))


async def main() -> None:
    """Load, look, and write."""
    async with postgres() as server:
        pool = AsyncConnectionPool(
            server.dsn, name="orders", min_size=2, max_size=8, timeout=2, leak_timeout=15
        )
        async with pool:
            app = Inspector(pool, authorize=lambda scope: True, interval=0.25)
            config = uvicorn.Config(app, port=8765, log_level="warning", lifespan="off")
            host = uvicorn.Server(config)
            serving = asyncio.create_task(host.serve())
            work = [
                asyncio.create_task(load(pool)),
                asyncio.create_task(nightly_report(pool), name="nightly report"),
                asyncio.create_task(refund(pool), name="POST /refunds"),
            ]
            try:
                await pictures()
            finally:
                for task in work:
                    task.cancel()
                await asyncio.wait(work)
                host.should_exit = True
                await serving


async def pictures() -> None:
    """A light one, a dark one, one of a lease, and one of a phone."""
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, width, scheme, wait in (
            ("inspector", 1100, "light", 70),
            ("inspector-dark", 1100, "dark", 3),
            ("inspector-phone", 360, "light", 3),
        ):
            page = await browser.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            )
            await page.goto("http://127.0.0.1:8765/")
            await asyncio.sleep(wait)
            await page.screenshot(path=DOCS / f"{name}.png", full_page=True)
            if name == "inspector-dark":
                await page.get_by_role("button", name="POST /refunds").click()
                await asyncio.sleep(0.5)
                await page.screenshot(path=DOCS / "inspector-lease.png")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
