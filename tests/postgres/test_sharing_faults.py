"""Faults: each acknowledged write takes effect once, each failed one at most once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool
from tests._tools import few

from ._cli import bouncer
from ._severed import MODES, POOLER_MODES, Severed
from ._sharing import (
    DONE,
    LEFT,
    WAYS,
    Ledger,
    active,
    leave,
    leave_all,
    settled,
    started,
    warm,
    writes,
)
from ._tools import BOTH_LOOPS, at_rest, eventually, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpool.testing import Server

    from ._tools import Backends

pytestmark = needs_internals

LOOPS = BOTH_LOOPS

UNPREPARED = {"prepare_threshold": None}


@asynccontextmanager
async def stopped(pids: set[int]) -> AsyncIterator[None]:
    """Stop these processes for the length of a block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("pause", ["backends", "server"])
async def test_writes_that_wait_while_the_server_is_paused_are_not_run_once_given_up(
    dsn: str, backends: Backends, ledger: Ledger, server: Server, pause: str
) -> None:
    """Two writes are sent on the two connections; the others wait for these."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await warm(pool, ledger.insert, -1)
        await at_rest(pool)
        if pause == "server":
            await server.pause()
            ended = await in_time(leave_all(writes(pool, ledger, range(22))))
            await server.resume()
        else:
            async with stopped(backends.pids()):
                ended = await in_time(leave_all(writes(pool, ledger, range(22))))
        assert set(ended.values()) == {LEFT}
        await settled(pool, backends)
    backends.ask(f"DELETE FROM {ledger.name} WHERE id < 0")
    ledger.check(done=(), possible=range(2))


@pytest.mark.exhaustive
async def test_neighbours_of_a_statement_that_cannot_be_cancelled_are_run_or_refused(
    dsn: str, backends: Backends, ledger: Ledger, server: Server
) -> None:
    """The backend is stopped for longer than the pool waits for the end of a statement."""
    assert server.state == "running"
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=60) as pool:
        await warm(pool, "SELECT pg_sleep(%s)", 0)
        await warm(pool, ledger.insert, -1)
        head = asyncio.ensure_future(pool.execute("SELECT pg_sleep(%s)", [1]))
        await asyncio.sleep(0)
        neighbours = [asyncio.ensure_future(w()) for w in writes(pool, ledger, range(20)).values()]
        await asyncio.sleep(0)
        (pid,) = await eventually(lambda: {row[0] for row in active(backends)})
        async with stopped({pid}):
            head.cancel()
            await asyncio.wait([head, *neighbours], timeout=7)
        outcomes = await in_time(asyncio.gather(*neighbours, return_exceptions=True))
        await settled(pool, backends)
    backends.ask(f"DELETE FROM {ledger.name} WHERE id < 0")
    ledger.check(done={n for n, outcome in enumerate(outcomes) if isinstance(outcome, str)})


@pytest.mark.parametrize("mode", few(MODES + POOLER_MODES, 3))
async def test_no_write_is_lost_or_doubled_when_the_way_to_the_server_breaks(
    dsn: str, backends: Backends, ledger: Ledger, mode: str
) -> None:
    """One in eight of the connections breaks at its write."""
    random = Random(mode)

    def choose(message: bytes) -> str | None:
        struck = b"INSERT" in message and b"ledger" in message and random.random() < 1 / 8
        return mode if struck else None

    async with (
        Severed(dsn, choose) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=2, max_size=4, kwargs=UNPREPARED) as pool,
    ):

        async def write(number: int) -> bool:
            try:
                await pool.execute(ledger.insert, [number], timeout=1.0)
            except psycopg.Error:
                return False
            return True

        answers: list[bool] = []
        for wave in range(6):
            numbers = range(wave * 10, wave * 10 + 10)
            answers += await in_time(asyncio.gather(*map(write, numbers)))
        assert proxy.severed
        await eventually(lambda: not active(backends))
    await eventually(lambda: not backends.pids())
    done = {number for number, answer in enumerate(answers) if answer}
    ledger.check(done, possible=range(60))


@pytest.mark.parametrize("mode", ["cut before", "cut in the message", "FATAL before"])
async def test_a_write_that_waits_survives_the_loss_of_the_connection_before_it(
    dsn: str, backends: Backends, ledger: Ledger, mode: str
) -> None:
    """The write that was sent fails; those that wait run on another connection."""
    armed = True

    def choose(message: bytes) -> str | None:
        nonlocal armed
        if armed and b"INSERT" in message and b"ledger" in message:
            armed = False
            return mode
        return None

    async with (
        Severed(dsn, choose) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, kwargs=UNPREPARED) as pool,
    ):
        shots = [shot() for shot in writes(pool, ledger, range(10)).values()]
        outcomes = await in_time(asyncio.gather(*shots, return_exceptions=True))
        await settled(pool, backends)
    assert isinstance(outcomes[0], psycopg.OperationalError)
    assert outcomes[1:] == ["INSERT 0 1"] * 9
    ledger.check(done=range(1, 10))


def through(bouncing: str, application: str) -> str:
    """Return the connection string through a PgBouncer, with the test's application name."""
    return make_conninfo(bouncing, application_name=application)


@pytest.mark.exhaustive
async def test_writes_through_a_pooler_whose_callers_leave(
    dsn: str, asyncpool_dsn: str, application: str, backends: Backends, ledger: Ledger
) -> None:
    """PgBouncer has fewer connections to the server than the pool has to PgBouncer."""
    random = Random(1)
    settings: dict[str, Any] = {"pool_mode": "transaction", "default_pool_size": 2}
    with bouncer(asyncpool_dsn, **settings) as bouncing:
        there = through(bouncing, application)
        async with AsyncConnectionPool(there, min_size=1, max_size=4, kwargs=UNPREPARED) as pool:
            ended: dict[int, str] = {}

            async def write(number: int) -> None:
                await asyncio.sleep(random.random() * 2)
                shot = partial(pool.execute, ledger.insert, [number])
                if number % 3:
                    ended[number] = await leave(random.choice(WAYS), shot, random.random() * 0.2)
                else:
                    await shot()
                    ended[number] = DONE

            async def hold_up() -> None:
                while True:
                    await pool.execute("SELECT pg_sleep(%s)", [random.random() * 0.2])

            async with started(hold_up(), hold_up()):
                await in_time(asyncio.gather(*(write(number) for number in range(200))), 60)
            await settled(pool, backends)
    await eventually(lambda: not backends.pids())
    ledger.check({number for number, how in ended.items() if how is DONE}, possible=range(200))


async def test_writes_that_wait_before_a_pooler_are_not_run_once_given_up(
    dsn: str, asyncpool_dsn: str, application: str, backends: Backends, ledger: Ledger
) -> None:
    """Both connections of the pool hold a transaction in PgBouncer."""
    with bouncer(asyncpool_dsn, pool_mode="transaction", default_pool_size=2) as bouncing:
        there = through(bouncing, application)
        async with AsyncConnectionPool(there, min_size=2, kwargs=UNPREPARED) as pool:
            await warm(pool, "SELECT pg_sleep(%s)", 0)
            await warm(pool, ledger.insert, -1)
            sleep = partial(pool.execute, "SELECT pg_sleep(%s)", [1.0])
            async with started(sleep(), sleep()) as before:
                ended = await in_time(leave_all(writes(pool, ledger, range(15))))
                await in_time(asyncio.gather(*before))
            await settled(pool, backends)
    await eventually(lambda: not backends.pids())
    backends.ask(f"DELETE FROM {ledger.name} WHERE id < 0")
    ledger.check({number for number, how in ended.items() if how is DONE})


def more_than(done: set[int], number: int) -> bool:
    """Whether more than `number` writes are acknowledged."""
    return len(done) > number


async def test_a_pooler_that_drops_all_its_clients_doubles_no_write(
    dsn: str, asyncpool_dsn: str, application: str, backends: Backends, ledger: Ledger
) -> None:
    """The console's KILL closes every connection during the writes."""
    settings: dict[str, Any] = {"pool_mode": "transaction", "default_pool_size": 4}
    admin = conninfo_to_dict(asyncpool_dsn)["user"]
    with bouncer(asyncpool_dsn, console=False, admin_users=admin, **settings) as bouncing:
        there = through(bouncing, application)
        done: set[int] = set()
        async with AsyncConnectionPool(there, min_size=4, kwargs=UNPREPARED) as pool:
            async with await psycopg.AsyncConnection.connect(
                make_conninfo(bouncing, dbname="pgbouncer"), autocommit=True
            ) as console:

                async def write(number: int) -> None:
                    try:
                        await pool.execute(ledger.insert, [number], timeout=5.0)
                    except psycopg.Error:
                        return
                    done.add(number)

                async def write_all(first: int) -> None:
                    for number in range(first, 400, 8):
                        await write(number)

                async with started(*(write_all(first) for first in range(8))) as tasks:
                    for _ in range(3):
                        await eventually(partial(more_than, done, len(done) + 20))
                        await console.execute("KILL postgres")
                        await console.execute("RESUME postgres")
                    await in_time(asyncio.gather(*tasks), 30)
            await settled(pool, backends)
    await eventually(lambda: not backends.pids())
    ledger.check(done, possible=range(400))


@pytest.mark.parametrize("how", ["pg_terminate_backend(pg_backend_pid())", "its message is broken"])
async def test_a_one_shot_that_costs_its_session_costs_no_other_one_shot(
    dsn: str, backends: Backends, ledger: Ledger, how: str
) -> None:
    """Reads and writes issued at the same moment get their results."""

    def choose(message: bytes) -> str | None:
        return "garble" if b"its message is broken" in message else None

    async with (
        Severed(dsn, choose) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=2, max_size=4, kwargs=UNPREPARED) as pool,
    ):
        deadly = f"SELECT {how}" if how.startswith("pg_") else f"SELECT '{how}'"
        for wave in range(5):
            numbers = range(wave * 10, wave * 10 + 10)
            shots: list[Any] = []
            for write in writes(pool, ledger, numbers).values():
                shots += [pool.fetchval("SELECT 1"), write()]
            shots.insert(5, pool.execute(deadly))
            outcomes = await in_time(asyncio.gather(*shots, return_exceptions=True))
            error = outcomes.pop(5)
            assert isinstance(error, psycopg.Error), error
            assert outcomes[::2] == [1] * 10
            assert outcomes[1::2] == ["INSERT 0 1"] * 10
        await settled(pool, backends)
    ledger.check(done=range(50))
