"""Take the pictures of the inspector and `top` in docs/: python docs/site/inspector_shots.py

It needs playwright and a Chromium on the machine. They are of examples/fastapi_app.py on a
temporary server under a load of requests: with a report that keeps a connection for long and a
handler that does not return its own, with too many requests, with the server stopped, and with two
worker processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psycopg
import uvicorn
from fastapi import FastAPI
from PIL import Image
from playwright.async_api import Browser, Locator, Page, async_playwright
from psycopg.conninfo import make_conninfo
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from asyncpool import AsyncConnectionPool
from asyncpool.cli._frame import Frame
from asyncpool.cli._top import _follow, _opener
from asyncpool.testing import Server, postgres

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS.parent / "examples"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
PORT = 8765
ADDRESS = f"http://127.0.0.1:{PORT}"
CREDENTIALS = {"username": "admin", "password": "only for the pictures"}
HEADER = f"Authorization: Basic {b64encode(':'.join(CREDENTIALS.values()).encode()).decode()}"
HOST = "web-1"
"""Shown instead of the name of the machine."""
WORKER = f"""
import socket
socket.gethostname = lambda: {HOST!r}
from fastapi_app import app
"""
TERMINAL = TerminalTheme(
    (21, 24, 30),
    (216, 219, 226),
    [
        *[(60, 64, 72), (229, 83, 75), (87, 171, 90), (218, 170, 63)],
        *[(88, 150, 255), (184, 124, 243), (57, 197, 207), (216, 219, 226)],
    ],
    [
        *[(118, 124, 135), (255, 123, 114), (126, 231, 135), (242, 204, 96)],
        *[(121, 184, 255), (210, 168, 255), (86, 212, 221), (255, 255, 255)],
    ],
)
FONT = "DejaVu Sans Mono, Menlo, Consolas, monospace"


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
    socket.gethostname = lambda: HOST
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
            work = [asyncio.create_task(load(client, pool))]
            try:
                async with async_playwright() as play:
                    browser = await play.chromium.launch(
                        executable_path=CHROMIUM, args=["--no-sandbox"]
                    )
                    await take_pictures(browser, pool, server, work)
                    await browser.close()
            finally:
                for task in work:
                    task.cancel()
                await asyncio.wait(work)
        await server.start()
        async with async_playwright() as play, two_workers():
            browser = await play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            await take_pictures_of_workers(browser)
            await browser.close()


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


async def take_pictures(
    browser: Browser, pool: AsyncConnectionPool, server: Server, work: list[asyncio.Task[None]]
) -> None:
    """Take pictures wide and narrow, light and dark, of a lease, of a full pool, of an outage."""
    work.append(asyncio.create_task(nightly_export(pool), name="nightly export"))
    page = await page_of(browser, 1100, "light")  # from now on the feed has samples
    await page.close()
    await asyncio.sleep(25)
    await picture_of_top(browser, "top-slow")
    work.append(asyncio.create_task(refund(pool), name="POST /refunds"))
    page = await page_of(browser, 1100, "light")
    await asyncio.sleep(75)
    await save(page, "inspector", full_page=True)
    await page.close()
    await picture_of_top(browser, "top-leak")
    page = await page_of(browser, 360, "light")
    await save(page, "inspector-phone")
    await page.close()
    page = await page_of(browser, 1100, "dark")
    crowd = [asyncio.create_task(full(pool), name=f"GET /cart/{n}") for n in range(14)]
    await asyncio.sleep(2.5)
    await save(page, "inspector-dark", full_page=True)
    await picture_of_top(browser, "top-full")
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)
    await page.get_by_role("button", name="POST /refunds").click()
    await asyncio.sleep(1)
    await save(page, "inspector-lease")
    await page.close()
    page = await page_of(browser, 1100, "light")
    await server.stop()
    await asyncio.sleep(8)
    await save(page, "inspector-outage", full_page=True)
    await page.close()
    await picture_of_top(browser, "top-outage")


async def take_pictures_of_workers(browser: Browser) -> None:
    """Take pictures of a page, and of `top`, that both workers have answered."""
    page = await page_of(browser, 1100, "light")
    while "one of 2" not in (await page.locator("#who").inner_text()):
        await page.get_by_role("button", name="Pause").click()  # the next stream is of either
        await page.get_by_role("button", name="Resume").click()
        await asyncio.sleep(1)
    await asyncio.sleep(8)  # the stream lasts ten seconds
    await save(page, "inspector-workers", full_page=True)
    await page.close()
    await picture_of_top(browser, "top-workers", processes=2)


async def picture_of_top(browser: Browser, name: str, *, processes: int = 1) -> None:
    """Take a picture of the frame that `top` draws of the next snapshots.

    Args:
        browser: what renders it.
        name: the picture's name.
        processes: how many processes must have answered.
    """
    address = f"{ADDRESS}/pools"

    def frame() -> Frame:
        seen: set[int] = set()
        while True:
            snapshot = next(_follow(_opener(address, [HEADER])))
            seen.add(snapshot["process"]["pid"])
            if len(seen) == processes:
                place = "http://127.0.0.1:8000/pools"
                return Frame(snapshot, place, live=True, processes=processes)

    console = Console(
        width=100, record=True, file=StringIO(), force_terminal=True, legacy_windows=False
    )
    console.print(await asyncio.to_thread(frame))
    svg = console.export_svg(title="python -m asyncpool top", theme=TERMINAL)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", FONT)
    page = await browser.new_page(viewport={"width": 1100, "height": 800})
    await page.set_content(f"<body style='margin: 0'>{svg}</body>")
    await save(page.locator("svg"), name)
    await page.close()


async def save(shown: Page | Locator, name: str, **options: Any) -> None:
    """Take a picture, and store it with a palette, which makes it small."""
    taken = Image.open(BytesIO(await shown.screenshot(**options))).convert("RGB")
    taken.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(
        DOCS / f"{name}.png", optimize=True
    )


@contextlib.asynccontextmanager
async def two_workers() -> AsyncIterator[None]:
    """Serve the example with two processes, which take connections in turn; end them."""
    with TemporaryDirectory() as folder:
        Path(folder, "worker.py").write_text(WORKER)  # noqa: ASYNC240 - nobody else is served
        path = os.pathsep.join([folder, str(EXAMPLES), *sys.path])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "worker:app", "--port", str(PORT)),
            *("--workers", "2", "--timeout-keep-alive", "0", "--log-level", "critical"),
            env=os.environ | {"PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        )
        try:
            async with httpx.AsyncClient(base_url=ADDRESS) as client:
                while not await answers(client):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.2)
                busy = asyncio.create_task(requests(client))
                yield
                busy.cancel()
                await asyncio.wait({busy})
        finally:
            process.terminate()
            await process.wait()


async def requests(client: httpx.AsyncClient) -> None:
    """Send requests without end, each on a connection of its own."""
    while True:
        sent = [client.get("/notes", headers={"Connection": "close"}) for _ in range(4)]
        await asyncio.gather(*sent, return_exceptions=True)
        await asyncio.sleep(0.05)


async def answers(client: httpx.AsyncClient) -> bool:
    """Whether the app is ready."""
    try:
        answer = await client.get("/ready", headers={"Connection": "close"})
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


async def full(pool: AsyncConnectionPool) -> None:
    """Run one of many requests that keep their connections for some seconds."""
    with contextlib.suppress(psycopg.Error):
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(3)")


if __name__ == "__main__":
    asyncio.run(main())
