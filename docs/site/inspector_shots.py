"""Take the pictures of the inspector in docs/: python docs/site/inspector_shots.py

It needs playwright and a Chromium on the machine. The pool is used on a temporary server: many
short requests, a slow report, and a handler that does not return its connection.
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
    """Run a typical short request."""
    async with pool.connection() as conn:
        await conn.execute("SELECT pg_sleep(%s)", [random.expovariate(1 / 0.02)])


async def nightly_report(pool: AsyncConnectionPool) -> None:
    """Run a report that keeps a connection for long."""
    async with pool.connection() as conn:
        await conn.execute("SELECT count(*), pg_sleep(90) FROM generate_series(1, 1000)")


async def refund(pool: AsyncConnectionPool) -> None:
    """Run a handler that does not release its connection."""
    conn = await pool.acquire()
    await conn.execute(
        "SELECT amount FROM pg_class, (SELECT 5 AS amount) a WHERE relname = %s", ["x"]
    )
    await asyncio.sleep(3600)


async def load(pool: AsyncConnectionPool) -> None:
    """Start short requests, at a rate that varies in waves."""
    tasks = set()
    for number in range(10_000):
        wave = 1 + (number // 400) % 3
        task = asyncio.create_task(look_up(pool), name=f"GET /orders/{random.randrange(9000)}")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(random.expovariate(60 * wave))


async def main() -> None:
    """Start the server and the load, and take the pictures."""
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
                await take_pictures()
            finally:
                for task in work:
                    task.cancel()
                await asyncio.wait(work)
                host.should_exit = True
                await serving


async def take_pictures() -> None:
    """Take pictures in the light theme, in the dark theme, of a lease and on a phone."""
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
