"""Faults of a server that refuses all connects: password, database, number of sessions."""

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
from benchmarks.faults._database import make_database, public_file
from benchmarks.faults._fault import Fault
from benchmarks.faults._proxied import proxied
from benchmarks.faults._trial import Trial

LIMIT = 2.0
"""Seconds that a request may wait where waiting does not help."""
RULES = """
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
host replication postgres 127.0.0.1/32 scram-sha-256
"""
SLOTS = 14
"""`max_connections` of the crowded server; three are reserved for superusers."""


@asynccontextmanager
async def _asks_for_passwords() -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        rules = public_file(folder, "hba", RULES)
        async with postgres(settings={"hba_file": rules}) as server:
            yield server


async def _password(trial: Trial) -> None:
    """Change the password and end the sessions; later set the old password again."""
    async with proxied(trial.dsn) as (dsn, proxy):
        await trial.start(dsn, limit=1 if trial.quick else LIMIT)
        before = proxy.accepted
        with trial.refusing():
            async with trial.while_idle():
                await trial.ask("ALTER ROLE app PASSWORD 'second'")
                await trial.terminate(await trial.pids())
            await trial.wait(5, 2)
            await trial.ask("ALTER ROLE app PASSWORD 'first'")
        trial.observed.attempts = proxy.accepted - before
        await trial.finish()


async def _database(trial: Trial) -> None:
    """Drop the database, after the numbers in its ledger were read, and create it again."""
    async with proxied(trial.dsn) as (dsn, proxy):
        await trial.start(dsn, limit=1 if trial.quick else LIMIT)
        before = proxy.accepted
        with trial.refusing():
            async with trial.while_idle():
                trial.observed.ledger += await trial.ledger()
                await trial.ask("DROP DATABASE app WITH (FORCE)")
            await trial.wait(5, 2)
            await make_database(trial.server.dsn)
        trial.observed.attempts = proxy.accepted - before
        await trial.finish()


async def _crowd(trial: Trial) -> None:
    """Let other sessions take all free slots, then end one of the pool's backends."""
    crowd: list[psycopg.AsyncConnection[Any]] = []
    name = make_conninfo(trial.dsn, application_name="faults-crowd")
    async with proxied(trial.dsn) as (dsn, proxy):
        await trial.start(dsn)
        before = proxy.accepted
        try:
            await _fill(crowd, name)
            proxy.delay = 0.5  # so that another session takes the slot first
            async with trial.while_idle():
                await trial.terminate((await trial.pids())[-1:])
            size = len(crowd)
            while len(crowd) == size:
                await _fill(crowd, name)
            proxy.delay = 0.0
            await trial.wait(3, 1.5)
        finally:
            for conn in crowd:
                await conn.close()
        trial.observed.attempts = proxy.accepted - before
        await trial.finish()


async def _fill(crowd: list[psycopg.AsyncConnection[Any]], dsn: str) -> None:
    with suppress(psycopg.OperationalError):
        while True:
            crowd.append(await psycopg.AsyncConnection.connect(dsn))
    await asyncio.sleep(0.01)


FAULTS = (
    Fault("password", "password changed for 5 s", _password, _asks_for_passwords),
    Fault("database", "database dropped for 5 s", _database),
    Fault(
        "crowd",
        "`max_connections` reached by others for 3 s",
        _crowd,
        partial(postgres, max_connections=SLOTS),
    ),
)
