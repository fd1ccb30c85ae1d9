"""The web benchmark: each pool answers each test, and a tiny run has every figure."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from benchmarks.web._generator import find_program, load
from benchmarks.web._stores import STORES, Setup, find
from benchmarks.web._tests import ADDED, MESSAGES, TESTS, TWENTY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["asyncpg", "httptools", "httpx", "matplotlib", "psqlpy", "psycopg_pool", "rich"]
NEEDED += ["sqlalchemy", "starlette", "typer", "uvicorn", "uvloop"]
MISSING = [name for name in NEEDED if find_spec(name) is None]
GENERATORS = [name for name in ("wrk", "k9") if find_program(name)]

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX"),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: pip install --group bench",
    ),
]


@pytest.fixture(params=list(STORES))
async def client(
    request: pytest.FixtureRequest, asyncpool_dsn: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application on each pool."""
    import httpx

    from benchmarks.web._app import Application
    from benchmarks.web._run import filled

    store = find(request.param)(Setup(asyncpool_dsn, 2))
    async with filled(asyncpool_dsn):
        await store.open()
        try:
            transport = httpx.ASGITransport(Application(store).starlette())
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                yield client
        finally:
            await store.close()


async def test_each_pool_answers_each_test(client: httpx.AsyncClient, asyncpool_dsn: str) -> None:
    """By the rows that the tables have; what was updated is committed."""
    row = (await client.get("/row")).json()
    assert row["id"] == row["number"]
    response = await client.get("/transaction")
    if response.status_code != 404:  # one-shots have none
        row = response.json()
        assert row["id"] == row["number"]
    rows = (await client.get("/twenty")).json()
    assert len({each["id"] for each in rows}) == TWENTY
    assert all(each["id"] == each["number"] for each in rows)
    page = (await client.get("/fortunes")).text
    assert page.count("<tr>") == len(MESSAGES) + 2
    assert ADDED in page
    assert "<script>" not in page
    assert page.index("A bad random") < page.index(ADDED) < page.index("Any program")
    changed = (await client.get("/updates")).json()
    numbers = await _numbers(asyncpool_dsn, [each["id"] for each in changed])
    assert numbers == {each["id"]: each["number"] for each in changed}
    assert len(numbers) == TWENTY
    usage = (await client.get("/usage")).json()
    assert usage["under_way"] == 0
    assert usage["answered"] in {4, 5}
    assert usage["cpu"] > 0


async def _numbers(dsn: str, keys: list[int]) -> dict[int, int]:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        cur = await conn.execute(
            "SELECT id, number FROM benchmark_world WHERE id = ANY (%s)", (keys,)
        )
        return dict(await cur.fetchall())


@pytest.mark.parametrize("using", GENERATORS)
async def test_each_load_generator_has_figures(using: str) -> None:
    """The programs are run with options that they know."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        seen = await load(f"http://127.0.0.1:{port}/", 2, 1, using)
    assert seen.rate > 0
    assert 0 < seen.p50 <= seen.p99 < 60


@pytest.mark.skipif(not GENERATORS, reason="neither wrk nor k9 found")
def test_a_tiny_run_has_every_figure_of_every_pool(asyncpool_dsn: str, tmp_path: Path) -> None:
    """One command writes the figures, the page and its picture; the DSN is in none of them."""
    page = tmp_path / "page.md"
    page.write_text("<!-- web: begin -->\n<!-- web: end -->\n")
    files = ("--json", str(tmp_path / "figures.json"), "--page", str(page))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.web", "--tiny", "--dsn", asyncpool_dsn, *files],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    assert report["notes"] == []
    found = {(key, pool) for key, pools in report["samples"].items() for pool in pools}
    assert found == {
        (f"{test}-{what}", pool)
        for test in TESTS
        for what in ("rate", "p50", "p99", "cpu")
        for pool in STORES
        if (test, pool) != ("transaction", "asyncpool one-shots")
    }
    assert TESTS["updates"] in page.read_text()
    assert (tmp_path / "web.png").exists()
    assert "password" not in json.dumps(report)
