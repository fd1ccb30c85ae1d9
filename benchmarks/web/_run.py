"""The run: a server process for each pool, then rounds in which each has a turn."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from importlib.metadata import version
from subprocess import PIPE
from typing import Any

import psycopg

from benchmarks._facts import facts, server_version
from benchmarks._plan import ROOT, Plan
from benchmarks._rounds import Bench, Turn
from benchmarks.web._app import USAGE
from benchmarks.web._generator import generator, load
from benchmarks.web._stores import Transactions, find
from benchmarks.web._tests import CREATE, DROP, INSERT, MESSAGES, TESTS

FRAMEWORK = ("starlette", "uvicorn", "httptools")


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    tests: list[str]
    pools: list[str]
    rounds: int
    seconds: int
    """Duration of a turn."""
    seed: int
    size: int = 10
    """Connections of each pool."""
    clients: int = 64
    """HTTP connections, each with one request at a time."""
    warm: int = 1
    """Duration of the turn before the first round, which is not measured."""


async def run(settings: Settings, dsn: str, report: Callable[[str], None]) -> dict[str, Any]:
    """Run all tests on all pools; return the report, as in the JSON."""
    using = generator()
    bench = Bench(Plan(dsn, "uvloop", [], [], settings.rounds, settings.seed), {}, report)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(filled(dsn))
        ports: dict[str, int] = {}
        for pool in settings.pools:
            try:
                find(pool)
            except ImportError as error:
                bench.notes.append(f"{pool} is left out: {error}")
                continue
            ports[pool] = await stack.enter_async_context(_serving(pool, dsn, settings.size))
        for test in settings.tests:
            turns: dict[str, Turn] = {
                pool: partial(_turn, test, port, settings, using)
                for pool, port in ports.items()
                if test != "transaction" or issubclass(find(pool), Transactions)
            }
            if settings.warm:
                for pool in turns:
                    report(f"{test}: warming up {pool}")
                    url = f"http://127.0.0.1:{ports[pool]}/{test}"
                    await load(url, settings.clients, settings.warm, using)
            await bench.rounds(test, settings.rounds, turns)
    return {
        "facts": {
            **facts(),
            **{name: version(name) for name in FRAMEWORK},
            "postgresql": await server_version(dsn),
            "load generator": using,
        },
        "settings": vars(settings),
        "tests": {test: TESTS[test] for test in settings.tests},
        "samples": bench.samples,
        "notes": bench.notes,
    }


async def _turn(test: str, port: int, settings: Settings, using: str) -> dict[str, float]:
    before = await _usage(port)
    url = f"http://127.0.0.1:{port}/{test}"
    seen = await load(url, settings.clients, settings.seconds, using)
    after = await _usage(port)
    cpu = (after["cpu"] - before["cpu"]) / (after["answered"] - before["answered"])
    return {
        f"{test}-rate": seen.rate,
        f"{test}-p50": seen.p50 * 1e3,
        f"{test}-p99": seen.p99 * 1e3,
        f"{test}-cpu": cpu * 1e6,
    }


async def _usage(port: int) -> dict[str, float]:
    """Return the CPU time and the number of answers, when no request is under way."""
    while True:
        client = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            client.request("GET", f"/{USAGE}")
            usage: dict[str, float] = json.loads(client.getresponse().read())
        finally:
            client.close()
        if not usage["under_way"]:
            return usage
        await asyncio.sleep(0.01)


@asynccontextmanager
async def _serving(pool: str, dsn: str, size: int) -> AsyncIterator[int]:
    """Run an application in a process of its own; yield its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.web._server"),
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None, "bug: it is a pipe"
    assert process.stdout is not None, "bug: it is a pipe"
    try:
        process.stdin.write(json.dumps({"pool": pool, "dsn": dsn, "size": size}).encode() + b"\n")
        port = await process.stdout.readline()
        if not port:
            msg = f"the application on {pool} ended with status {await process.wait()}"
            raise RuntimeError(msg)
        yield int(port)
    finally:
        process.stdin.close()  # it ends with it
        await process.wait()


@asynccontextmanager
async def filled(dsn: str) -> AsyncIterator[None]:
    """Create the tables for a block, with their rows."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(CREATE)
        await conn.cursor().executemany(INSERT, list(enumerate(MESSAGES, 1)))
        await conn.execute("VACUUM ANALYZE benchmark_world")
        try:
            yield
        finally:
            await conn.execute(DROP)
