"""A server that answers and lets nobody in: the password, the database, the number of sessions."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from asyncpool.testing import Server, postgres
from benchmarks.faults._cast import make_database, readable
from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import Stage
from benchmarks.faults._through import through

LIMIT = 2.0
"""Seconds that a request may wait where waiting is of no use."""
RULES = """
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
host replication postgres 127.0.0.1/32 scram-sha-256
"""
SLOTS = 14
"""Sessions that the crowded server has: three are for superusers."""


@asynccontextmanager
async def _asks_for_passwords() -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        rules = readable(folder, "hba", RULES)
        async with postgres(settings={"hba_file": rules}) as server:
            yield server


async def _password(stage: Stage) -> None:
    """Changed, and the sessions ended; later the pool's own password is the right one again."""
    async with through(stage.dsn) as (dsn, proxy):
        await stage.begin(dsn, limit=1 if stage.quick else LIMIT)
        before = proxy.accepted
        with stage.refusing():
            async with stage.at_rest():
                await stage.ask("ALTER ROLE app PASSWORD 'second'")
                await stage.terminate(await stage.pids())
            await stage.wait(5, 2)
            await stage.ask("ALTER ROLE app PASSWORD 'first'")
        stage.seen.attempts = proxy.accepted - before
        await stage.over()


async def _database(stage: Stage) -> None:
    """What was written to the old one is counted before it goes."""
    async with through(stage.dsn) as (dsn, proxy):
        await stage.begin(dsn, limit=1 if stage.quick else LIMIT)
        before = proxy.accepted
        with stage.refusing():
            async with stage.at_rest():
                stage.seen.ledger += await stage.ledger()
                await stage.ask("DROP DATABASE app WITH (FORCE)")
            await stage.wait(5, 2)
            await make_database(stage.server.dsn)
        stage.seen.attempts = proxy.accepted - before
        await stage.over()


async def _crowd(stage: Stage) -> None:
    """Others take every free slot, and that of one of the pool's own backends when it ends."""
    crowd: list[psycopg.AsyncConnection[Any]] = []
    name = make_conninfo(stage.dsn, application_name="faults-crowd")
    async with through(stage.dsn) as (dsn, proxy):
        await stage.begin(dsn)
        before = proxy.accepted
        try:
            await _fill(crowd, name)
            proxy.delay = 0.5  # the slot is to be gone before the pool asks for it
            async with stage.at_rest():
                await stage.terminate((await stage.pids())[-1:])
            size = len(crowd)
            while len(crowd) == size:
                await _fill(crowd, name)
            proxy.delay = 0.0
            await stage.wait(3, 1.5)
        finally:
            for conn in crowd:
                await conn.close()
        stage.seen.attempts = proxy.accepted - before
        await stage.over()


async def _fill(crowd: list[psycopg.AsyncConnection[Any]], dsn: str) -> None:
    with suppress(psycopg.OperationalError):
        while True:
            crowd.append(await psycopg.AsyncConnection.connect(dsn))
    await asyncio.sleep(0.01)


SCENES = (
    Scene("password", "password changed for 5 s", _password, _asks_for_passwords),
    Scene("database", "database dropped for 5 s", _database),
    Scene(
        "crowd",
        "`max_connections` reached by others for 3 s",
        _crowd,
        partial(postgres, max_connections=SLOTS),
    ),
)
