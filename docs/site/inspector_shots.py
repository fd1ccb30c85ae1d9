"""Take the pictures of the inspector in docs/: python docs/site/inspector_shots.py

It needs playwright and a Chromium on the machine. They are of examples/fastapi_app.py on a
temporary server under a load of requests: with a report that keeps a connection for long and a
handler that does not return its own, with too many requests, and with the server stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import uvicorn
from fastapi import FastAPI
from playwright.async_api import Browser, Page, async_playwright
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool
from asyncpool.testing import Server, postgres

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS.parent / "examples"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
PORT = 8765
ADDRESS = f"http://127.0.0.1:{PORT}"
CREDENTIALS = {"username": "admin", "password": "only for the pictures"}


async def nightly_export(pool: AsyncConnectionPool) -> None:
    """Run a report that keeps a connection for long."""
    async with pool.connection() as conn:
        await conn.execute("SELECT count(*), pg_sleep(600) FROM notes")


async def refund(pool: AsyncConnectionPool) -> None:
    """Run a handler that does not release its connection."""
    conn = await pool.acquire()
    await conn.execute("SELECT text FROM notes WHERE id = %s FOR UPDATE", [1])
    await asyncio.sleep(3600)


async def search(pool: AsyncConnectionPool) -> None:
    """Run a typical short request."""
    async with pool.connection() as conn:
        await conn.execute(
            "SELECT id, pg_sleep(%s) FROM notes ORDER BY id DESC LIMIT 1",
            [random.expovariate(1 / 0.04)],
        )


async def load(client: httpx.AsyncClient, pool: AsyncConnectionPool) -> None:
    """Start short requests, at a rate that varies in waves."""
    tasks: set[asyncio.Task[Any]] = set()

    async def quietly(work: Any) -> None:
        with contextlib.suppress(psycopg.Error, httpx.HTTPError):
            await work

    for number in range(100_000):
        wave = 1 + (number // 300) % 3
        kind = random.random()
        if kind < 0.08:
            body = {"text": f"note {number}"}
            task = asyncio.create_task(quietly(client.post("/notes", json=body)))
        elif kind < 0.2:
            task = asyncio.create_task(quietly(client.get("/notes")))
        else:
            task = asyncio.create_task(quietly(search(pool)), name=f"GET /search/{number % 97}")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(random.expovariate(32 * wave))


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[None]:
    """Serve the app."""
    config = uvicorn.Config(app, port=PORT, log_level="critical")
    host = uvicorn.Server(config)
    task = asyncio.create_task(host.serve())
    while not host.started:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.1)
    try:
        yield
    finally:
        host.should_exit = True
        await task


async def main() -> None:
    """Start the server and the load, and take the pictures."""
    socket.gethostname = lambda: "web-1"  # not the name of the machine
    async with postgres() as server:
        async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
            await conn.execute("CREATE DATABASE shop")
        os.environ["DATABASE_URL"] = make_conninfo(server.dsn, dbname="shop")
        os.environ["INSPECTOR_PASSWORD"] = CREDENTIALS["password"]
        sys.path.append(str(EXAMPLES))
        app: FastAPI = importlib.import_module("fastapi_app").app
        async with serving(app), httpx.AsyncClient(base_url=ADDRESS) as client:
            pool: AsyncConnectionPool = app.state.pool
            await pool.execute("INSERT INTO notes (text) VALUES ('the first')")
            work = [
                asyncio.create_task(load(client, pool)),
                asyncio.create_task(nightly_export(pool), name="nightly export"),
                asyncio.create_task(refund(pool), name="POST /refunds"),
            ]
            try:
                async with async_playwright() as play:
                    browser = await play.chromium.launch(
                        executable_path=CHROMIUM, args=["--no-sandbox"]
                    )
                    await take_pictures(browser, pool, server)
                    await browser.close()
            finally:
                for task in work:
                    task.cancel()
                await asyncio.wait(work)


async def page_of(browser: Browser, width: int, scheme: Any) -> Page:
    """Open the inspector's page."""
    page = await browser.new_page(
        viewport={"width": width, "height": 1500 if width < 500 else 800},
        color_scheme=scheme,
        http_credentials=CREDENTIALS,  # type: ignore[arg-type]
    )
    await page.goto(f"{ADDRESS}/pools/")
    await asyncio.sleep(3)
    return page


async def take_pictures(browser: Browser, pool: AsyncConnectionPool, server: Server) -> None:
    """Take pictures wide and narrow, light and dark, of a lease, of a full pool, of an outage."""
    page = await page_of(browser, 1100, "light")
    await asyncio.sleep(100)
    await page.screenshot(path=DOCS / "inspector.png", full_page=True)
    await page.close()
    page = await page_of(browser, 360, "light")
    await page.screenshot(path=DOCS / "inspector-phone.png")
    await page.close()
    page = await page_of(browser, 1100, "dark")
    crowd = [asyncio.create_task(full(pool), name=f"GET /cart/{n}") for n in range(14)]
    await asyncio.sleep(2.5)
    await page.screenshot(path=DOCS / "inspector-dark.png", full_page=True)
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)
    await page.get_by_role("button", name="POST /refunds").click()
    await asyncio.sleep(1)
    await page.screenshot(path=DOCS / "inspector-lease.png")
    await page.close()
    page = await page_of(browser, 1100, "light")
    await server.stop()
    await asyncio.sleep(8)
    await page.screenshot(path=DOCS / "inspector-outage.png", full_page=True)
    await page.close()


async def full(pool: AsyncConnectionPool) -> None:
    """Run one of many requests that keep their connections for some seconds."""
    with contextlib.suppress(psycopg.Error):
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(3)")


if __name__ == "__main__":
    asyncio.run(main())
