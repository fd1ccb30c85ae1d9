"""`explain()`, logs and errors name holders and waiters, without secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, PoolStats, PoolTimeout, PoolUnavailable, within
from asyncpool.inspector import Inspector
from asyncpool.metrics.prometheus import PoolCollector
from asyncpool.testing import Server

from ._tools import Backends, at_rest, backend_of, eventually, in_time, overloaded

Pool = AsyncConnectionPool[Any]
HIDDEN = "hunter2"


async def handler(pool: Pool, leave: asyncio.Event) -> None:
    """Use a connection as an application does until `leave` is set."""
    async with pool.connection() as conn:
        await conn.execute("SELECT %s::text AS mine", [HIDDEN])
        await leave.wait()


HERE = f"{__file__}:{handler.__code__.co_firstlineno + 2} in handler"


async def held(pool: Pool, leave: asyncio.Event) -> asyncio.Task[None]:
    """Start a task that holds a connection in a transaction until `leave` is set."""
    task = asyncio.create_task(handler(pool, leave), name="the till")
    await eventually(lambda: any(each.transaction == "in transaction" for each in leases_of(pool)))
    return task


def leases_of(pool: Pool) -> Any:
    """Return the leases of `explain()`."""
    return pool.explain().leases


async def test_a_lease_is_reported_with_all_facts(dsn: str, backends: Backends) -> None:
    """The lease has the task, place, age, current stack, transaction and last statement."""
    async with AsyncConnectionPool(dsn, min_size=1, leak_timeout=60.0) as pool:
        leave = asyncio.Event()
        task = await held(pool, leave)
        (lease,) = leases_of(pool)
        assert lease.holder == "the till"
        assert lease.borrowed_at == lease.stack[0] == HERE
        assert lease.waits_at[-1].endswith("in handler")
        assert lease.pid in backends.pids()
        assert lease.last_sql == "SELECT %s::text AS mine"
        text = str(pool.explain())
        for fact in ("the till", HERE, "its task is at", str(lease.pid), "in transaction"):
            assert fact in text
        assert HIDDEN not in text + json.dumps(pool.explain().as_dict())
        leave.set()
        await task
        (idle,) = pool.explain().connections
        assert (idle.state, idle.pid, idle.uses, idle.lease) == ("idle", lease.pid, 1, None)


async def test_with_psycopgs_own_connections_and_no_leak_timeout_it_says_what_it_can(
    dsn: str, backends: Backends
) -> None:
    """The advice says how to get the missing facts."""
    kind: type[Any] = psycopg.AsyncConnection
    async with AsyncConnectionPool(dsn, min_size=1, connection_class=kind) as pool:
        leave = asyncio.Event()
        task = await held(pool, leave)
        (lease,) = leases_of(pool)
        assert (lease.holder, lease.stack, lease.last_sql) == ("the till", (), "")
        assert lease.pid in backends.pids()
        assert lease.waits_at
        assert any("leak_timeout" in each for each in pool.explain().advice)
        leave.set()
        await task


@pytest.mark.parametrize("pipeline", [True, False])
async def test_waiters_are_reported_however_they_asked(dsn: str, pipeline: bool) -> None:
    """In order of arrival, without background tasks of the pool."""
    async with AsyncConnectionPool(dsn, min_size=1, pipeline=pipeline) as pool:
        leave = asyncio.Event()
        task = await held(pool, leave)

        async def borrow() -> None:
            async with pool.connection():
                pass

        waiting = []
        for name, work in (("first", borrow()), ("second", pool.fetchval("SELECT 1"))):
            waiting.append(asyncio.ensure_future(work))
            waiting[-1].set_name(name)
            await eventually(lambda: pool.stats().waiting == len(waiting))
        explanation = pool.explain()
        assert [each.task for each in explanation.waiters] == ["first", "second"]
        assert explanation.waiters[0].waits_at[-1].endswith("borrow")
        assert "the first for" in str(explanation)
        leave.set()
        await in_time(asyncio.gather(task, *waiting))
        assert pool.explain().waiters == ()


async def test_an_overload_is_explained_and_seen_from_another_thread(dsn: str) -> None:
    """With the numbers of refused requests and of the queue; the thread does not need the loop."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with overloaded(pool, refusals=3):
            explanation = pool.explain()
            seen: list[PoolStats] = []
            thread = threading.Thread(target=lambda: seen.append(pool.stats()))
            thread.start()
            thread.join()  # this blocks the loop
        refusals, queue = explanation.overload
        assert refusals.startswith(f"3 of {explanation.stats.requests} requests were refused")
        assert "requests a second are served, and a new one would wait for" in queue
        assert 'set overload="refuse"' in str(explanation)
        for stats in (explanation.stats, *seen):
            assert stats.requests_refused == stats.refused_deadline == 3
            wait = (stats.waiting + 1) / stats.service_rate
            assert stats.expected_wait == pytest.approx(wait)
            assert stats.standing > 0


async def test_waiters_have_their_priority_and_their_flow(dsn: str) -> None:
    """Whether they borrow a connection or run a one-shot."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        async def ask() -> None:
            with within(priority=3, flow=("tenant", 7)):
                assert await pool.fetchval("SELECT 1") == 1

        async with pool.connection():
            waiting = [asyncio.create_task(pool.fetchval("SELECT 1"), name="plain")]
            await eventually(lambda: pool.stats().waiting)
            waiting.append(asyncio.create_task(ask(), name="tenant's"))
            await eventually(lambda: pool.stats().waiting == 2)
            explanation = pool.explain()
        first, second = explanation.waiters
        assert (first.task, first.priority, first.flow) == ("tenant's", 3, "('tenant', 7)")
        assert (second.task, second.priority, second.flow) == ("plain", 0, None)
        assert "tenant's, priority 3, flow ('tenant', 7)" in str(explanation)
        await in_time(asyncio.gather(*waiting))


async def test_a_timeout_reports_the_holder_of_the_longest_lease(dsn: str) -> None:
    """The error names the task of that lease and the line that borrowed it."""
    async with AsyncConnectionPool(dsn, min_size=1, leak_timeout=60.0) as pool:
        leave = asyncio.Event()
        task = await held(pool, leave)
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=0.05)
        statement = "last statement 'SELECT %s::text AS mine'"
        told = f"by the till, {statement}, borrowed at {HERE}: see pool.explain()"
        assert told in str(caught.value)
        assert HIDDEN not in str(caught.value)
        assert pool.stats().requests_timed_out == 1
        leave.set()
        await task


async def test_a_leak_in_a_rare_branch_is_found_everywhere(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log, its fields, the events and the leases have the line that borrowed the connection;
    the inspector and the metrics show it too."""

    async def shop(pool: Pool, order: int) -> Any:
        conn = await pool.acquire()
        if order % 7 == 3:
            return conn  # without a release
        await pool.release(conn)
        return None

    line = f"{__file__}:{shop.__code__.co_firstlineno + 1} in "
    async with AsyncConnectionPool(dsn, min_size=2, name="shop", leak_timeout=0.2) as pool:
        orders = [await asyncio.create_task(shop(pool, n), name=f"order {n}") for n in range(7)]
        await eventually(lambda: pool.stats().leaks)
        (record,) = [each for each in caplog.records if "pool_borrowed_at" in vars(each)]
        fields = vars(record)
        assert (fields["pool"], fields["pool_event"]) == ("shop", "leak")
        assert fields["pool_borrowed_at"].startswith(line)
        assert "order 3" in fields["pool_task"]
        assert fields["pool_age"] >= 0.2
        assert line in record.getMessage()
        explanation = pool.explain()
        assert [each.borrowed_at.startswith(line) for each in explanation.leases] == [True]
        assert [line in each.text for each in explanation.events if each.kind == "leak"] == [True]
        shown = await Inspector(pool, authorize=lambda scope: True)._feed.snapshot()
        place = json.loads(shown)["pools"][0]["leases"][0]["borrowed_at"]
        assert place
        assert explanation.leases[0].borrowed_at.endswith(place)
        scrape = generate_latest(PoolCollector(pool, registry=CollectorRegistry()))
        assert b'asyncpool_leaks_total{pool="shop"} 1.0' in scrape
        await pool.release(orders[3])


async def test_an_outage_is_two_warnings_and_reported_while_it_lasts(
    server: Server, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first warning has the error, the second the duration and number of failures."""
    async with AsyncConnectionPool(server.dsn, min_size=2, name="shop") as pool:
        await at_rest(pool)
        await server.stop()
        await eventually(lambda: pool.stats().connects_failed >= 4)
        await eventually(lambda: pool.explain().doing)
        explanation = pool.explain()
        assert explanation.last_error
        assert "connecting has been failing for" in explanation.doing[0]
        assert json.loads(json.dumps(explanation.as_dict()))["events"]
        await server.start()
        await at_rest(pool)
        kinds = [each.kind for each in pool.explain().events]
        assert kinds.index("outage over") < kinds.index("outage") < kinds.index("opened")
    warnings = [vars(each) for each in caplog.records if each.levelno >= logging.WARNING]
    outage = [each for each in warnings if each["pool_event"].startswith("outage")]
    assert [each["pool_event"] for each in outage] == ["outage", "outage over"]
    assert all(each["pool"] == "shop" for each in warnings)
    assert outage[1]["pool_failures"] >= 1
    assert outage[1]["pool_duration"] > 0


@pytest.mark.parametrize(
    "literal", [f"'{HIDDEN}'", f"E'a\\'{HIDDEN}'", f"'a''{HIDDEN}'", f"$x${HIDDEN}'$x$"]
)
async def test_a_password_that_a_statement_sets_is_not_shown(
    dsn: str, literal: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the leases nor in the report of a leak."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, leak_timeout=0.05) as pool,
        pool.connection() as conn,
    ):
        with suppress(psycopg.errors.UndefinedObject):
            await conn.execute(f"ALTER ROLE nobody_of_this_name PASSWORD {literal}")
        await eventually(lambda: "ALTER ROLE" in caplog.text)
        explanation = pool.explain()
    assert "PASSWORD ***" in explanation.leases[0].last_sql
    assert HIDDEN not in f"{explanation} {explanation!r} {caplog.text}"


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE SUBSCRIPTION s CONNECTION 'host=h password={HIDDEN}' PUBLICATION p",
        f"CREATE SUBSCRIPTION s CONNECTION 'host=h pass'\n'word={HIDDEN}' PUBLICATION p",
        f"ALTER ROLE nobody PASSWORD /* c */ '{HIDDEN}'",
        f"ALTER ROLE nobody PASSWORD -- c\n'{HIDDEN}'",
        f"ALTER ROLE nobody PASSWORD N'{HIDDEN}'",
        f"ALTER ROLE nobody PASSWORD 'a'\n'{HIDDEN}'",
        f"ALTER ROLE nobody PASSWORD 'a\\'{HIDDEN}'",
        f"ALTER ROLE nobody PASSWORD '{HIDDEN}",
        f"ALTER ROLE nobody PASSWORD 'a{' ' * 10_000}{HIDDEN}'",
        f"SELECT dblink_connect('host=h password = {HIDDEN}')",
        f"SELECT 'postgresql://me:{HIDDEN}@host/db'",
        f"CREATE USER MAPPING FOR u SERVER s OPTIONS (user 'u', \"password\" '{HIDDEN}')",
        f"UPDATE users SET \"password\" = '{HIDDEN}'",
        f"INSERT INTO users (name, password) VALUES ('u', '{HIDDEN}')",
        f"SELECT crypt('{HIDDEN}', gen_salt('bf'))",
        f"DO $do$BEGIN EXECUTE $x$ALTER ROLE nobody PASSWORD '{HIDDEN}'$x$; END$do$",
    ],
)
async def test_a_password_in_a_statement_is_not_shown(
    dsn: str, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However it is written there; the statement itself may fail."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, leak_timeout=0.05) as pool,
        pool.connection() as conn,
    ):
        with suppress(psycopg.Error):
            await conn.execute(statement.encode())
        await eventually(lambda: "last statement" in caplog.text)
        told = pool.explain()
    assert told.leases[0].last_sql.startswith(statement[:2])
    assert HIDDEN not in f"{told} {told!r} {caplog.text}"


@pytest.mark.timeout(60)
async def test_a_long_statement_is_reported_in_no_time(dsn: str) -> None:
    """With the square of its length it would take minutes."""
    for part in (" ", "password ", "'"):
        async with (
            AsyncConnectionPool(dsn, min_size=1, leak_timeout=60) as pool,
            pool.connection() as conn,
        ):
            with suppress(psycopg.Error):
                await conn.execute(f"SELECT 1 AS password{part * 50_000}".encode())
            assert 10 < len(pool.explain().leases[0].last_sql) < 1000


@pytest.mark.parametrize(
    "conninfo",
    [
        f"host=127.0.0.1 port=1 password={HIDDEN}",
        f"postgresql://me:{HIDDEN}@127.0.0.1:1/db",
        f"postgresql://me:a@{HIDDEN}@127.0.0.1:1/db",
        f"host=127.0.0.1 port=1 password=two {HIDDEN}",
    ],
)
async def test_no_password_is_logged_of_failed_connects(
    conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if libpq's error at connect repeats a part that it could not parse."""
    caplog.set_level(logging.DEBUG)

    def credentials() -> str:
        return conninfo

    async with AsyncConnectionPool(credentials, min_size=1, fail_fast_after=0.0) as pool:
        await eventually(lambda: pool.stats().connects_failed)
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=0.5)
        assert isinstance(caught.value, PoolUnavailable)
        explanation = pool.explain()
        health = await pool.health()
    assert explanation.last_error
    texts = [
        str(explanation),
        repr(explanation),
        json.dumps(explanation.as_dict()),
        repr(health),
        str(caught.value),
    ]
    for text in [*texts, *(each.getMessage() for each in caplog.records)]:
        assert HIDDEN not in text
    for record in caplog.records:
        assert HIDDEN not in repr(vars(record))


async def test_what_takes_time_is_measured(dsn: str) -> None:
    """Connects, pings, leases and waits are measured in seconds."""
    async with AsyncConnectionPool(make_conninfo(dsn), min_size=2) as pool:
        await at_rest(pool)
        await pool.check()
        leave = asyncio.Event()
        tasks = [await held(pool, leave), asyncio.create_task(handler(pool, leave))]
        await eventually(lambda: pool.stats().leased == 2)
        waiting = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting)
        leave.set()
        conn = await waiting
        assert await backend_of(conn)
        await pool.release(conn)
        await asyncio.gather(*tasks)
        stats = await at_rest(pool)
        counts = [times.count for times in (stats.connect, stats.ping, stats.use, stats.wait)]
        assert counts == [2, 2, 3, 1]
        assert stats.connect.sum == pytest.approx(stats.connect_time)
        assert stats.use.sum == pytest.approx(stats.use_time)
        for times in (stats.connect, stats.ping, stats.use, stats.wait):
            assert 0 < times.p50 <= times.p90 <= times.p99 <= times.max <= times.sum
            assert times.buckets[-1][1] == times.count
