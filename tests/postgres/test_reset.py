"""Between two borrowers: what the one did to the session is not there for the other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool
from tests._tools import at_once

from ._tools import (
    Proxy,
    all_usable,
    at_rest,
    backend_of,
    eventually,
    in_time,
    needs_internals,
)

Level = Literal["rollback", "session", "discard"]


@dataclass
class Trace:
    """A change that a borrower makes, and how the next one would see it."""

    done: str
    seen: str


SESSION = {
    "role": Trace("SET ROLE pg_monitor", "SELECT current_user, session_user"),
    "session authorization": Trace(
        "SET SESSION AUTHORIZATION pg_monitor", "SELECT current_user, session_user"
    ),
    "search_path": Trace("SET search_path = elsewhere", "SHOW search_path"),
    "tenant": Trace(
        "SET app.tenant_id = '42'", "SELECT coalesce(current_setting('app.tenant_id', true), '')"
    ),
    "tenant by function": Trace(
        "SELECT set_config('app.tenant_id', '42', false)",
        "SELECT coalesce(current_setting('app.tenant_id', true), '')",
    ),
    "time zone": Trace("SET TIME ZONE 'Asia/Tokyo'", "SHOW timezone"),
    "read only": Trace("SET default_transaction_read_only = on", "SHOW transaction_read_only"),
    "statement_timeout": Trace("SET statement_timeout = 12345", "SHOW statement_timeout"),
    "advisory lock": Trace(
        "SELECT pg_advisory_lock(4711)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    ),
    "listen": Trace("LISTEN gossip", "SELECT count(*) FROM pg_listening_channels()"),
    "held cursor": Trace(
        "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'held'",
    ),
}
DISCARD = {
    "temporary table": Trace(
        "CREATE TEMP TABLE scratch AS SELECT 1", "SELECT to_regclass('pg_temp.scratch')::text"
    ),
    "prepared statement": Trace(
        "PREPARE mine AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements"
    ),
    "sequence": Trace(
        "SELECT nextval('a_sequence')",
        "SELECT count(*) FROM (SELECT lastval()) AS last_one",
    ),
}
CASES = [
    *(("session", name) for name in SESSION),
    *(("discard", name) for name in [*SESSION, *DISCARD]),
]


async def look(conn: psycopg.AsyncConnection[Any], trace: Trace) -> object:
    """Return what a borrower sees, and leave no transaction open."""
    try:
        # psycopg itself is to leave no prepared statement of its own.
        rows = await (await conn.execute(trace.seen.encode(), prepare=False)).fetchall()
    except psycopg.Error as error:
        await conn.rollback()
        return error.sqlstate
    await conn.rollback()
    return rows


@pytest.mark.parametrize("ending", ["committed", "autocommit", "transaction left open"])
@pytest.mark.parametrize(("level", "name"), CASES)
async def test_the_next_borrower_finds_no_trace(
    dsn: str, level: Level, name: str, ending: str
) -> None:
    """On the very same connection, which was made clean and not replaced."""
    trace = (SESSION | DISCARD)[name]
    async with AsyncConnectionPool(dsn, min_size=1, reset=level) as pool:
        if name == "sequence":
            await pool.execute("CREATE SEQUENCE IF NOT EXISTS a_sequence")
        conn = await pool.acquire()
        before = await look(conn, trace)
        await conn.set_autocommit(ending == "autocommit")
        await conn.execute(trace.done.encode(), prepare=False)
        if ending != "transaction left open":
            await conn.commit()
            assert await look(conn, trace) != before, "the test's own premise"
        await pool.release(conn)
        async with pool.connection(timeout=10) as same:
            assert same is conn
            assert await look(same, trace) == before
        assert (await at_rest(pool)).connects == 1
        if name == "sequence":
            await pool.execute("DROP SEQUENCE a_sequence")


async def test_settings_of_the_connection_string_stay(dsn: str) -> None:
    """Values given as `options` are the session's defaults, to which a reset returns."""
    stays = make_conninfo(dsn, options="-c search_path=app -c statement_timeout=5s")
    async with AsyncConnectionPool(stays, min_size=1, reset="discard") as pool:
        async with pool.connection() as conn:
            await conn.execute("SET search_path = elsewhere")
        assert await pool.fetchval("SHOW search_path") == "app"
        assert await pool.fetchval("SHOW statement_timeout") == "5s"


async def test_what_was_set_for_one_transaction_is_gone_at_every_level(dsn: str) -> None:
    """`SET LOCAL` ends with its transaction, which the pool ends."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        await conn.execute("SET LOCAL app.tenant_id = '42'")
        await conn.execute("SELECT pg_advisory_xact_lock(4712)")
        await pool.release(conn)
        assert await pool.fetchval("SELECT current_setting('app.tenant_id', true)") in (None, "")
        assert await pool.fetchval("SELECT count(*) FROM pg_locks WHERE objid = 4712") == 0


@pytest.mark.parametrize("level", ["session", "discard"])
async def test_attributes_of_the_connection_are_put_back(dsn: str, level: Level) -> None:
    """autocommit, isolation, factories and the threshold are as `configure` left them."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        conn.prepare_threshold = 7
        await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)

    async with AsyncConnectionPool(dsn, min_size=1, reset=level, configure=configure) as pool:
        async with pool.connection() as conn:
            await conn.set_autocommit(True)
            await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
            await conn.set_read_only(True)
            await conn.set_deferrable(True)
            conn.row_factory = dict_row
            cursor_factory, conn.cursor_factory = conn.cursor_factory, psycopg.AsyncRawCursor
            conn.prepare_threshold = None
        async with pool.connection() as same:
            assert same is conn
            assert same.autocommit is False
            assert same.isolation_level is psycopg.IsolationLevel.REPEATABLE_READ
            assert same.read_only is None
            assert same.deferrable is None
            assert same.row_factory is not dict_row
            assert same.cursor_factory is cursor_factory
            assert same.prepare_threshold == 7


@pytest.mark.parametrize("level", ["session", "discard"])
async def test_notifications_of_one_borrower_do_not_reach_the_next(dsn: str, level: Level) -> None:
    """Notifications that psycopg received and did not deliver are dropped with their LISTEN."""
    async with AsyncConnectionPool(dsn, min_size=1, reset=level) as pool:
        async with pool.connection() as conn:
            await conn.set_autocommit(True)
            await conn.execute("LISTEN secrets")
            await conn.execute("NOTIFY secrets, 'for my eyes only'")
            await conn.execute("SELECT 1")
        async with pool.connection() as same:
            assert same is conn
            await same.set_autocommit(True)
            heard = [note.payload async for note in same.notifies(timeout=0.05)]
        assert heard == []


@pytest.mark.parametrize("level", ["session", "discard"])
async def test_handlers_of_one_borrower_are_not_called_for_the_next(dsn: str, level: Level) -> None:
    """A callback for notices and notifications goes with the lease in which it was added."""
    heard: list[str] = []
    async with AsyncConnectionPool(dsn, min_size=1, reset=level) as pool:
        async with pool.connection() as conn:
            conn.add_notify_handler(lambda note: heard.append(note.payload))
            conn.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
        async with pool.connection() as same:
            assert same is conn
            await same.set_autocommit(True)
            await same.execute("LISTEN gossip")
            await same.execute("NOTIFY gossip, 'for my ears only'")
            await same.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$")
            await same.execute("SELECT 1")
    assert heard == []


async def test_psycopgs_own_prepared_statements_work_on_after_discard(dsn: str) -> None:
    """psycopg's and the server's lists of prepared statements stay equal."""
    async with AsyncConnectionPool(dsn, min_size=1, reset="discard") as pool:
        backends = set()
        for round_ in range(4):
            async with pool.connection() as conn:
                backends.add(await backend_of(conn))
                for number in range(12):
                    cur = await conn.execute("SELECT %s::int + 1", [number])
                    assert await cur.fetchone() == (number + 1,)
                cur = await conn.execute("SELECT %s::text", [str(round_)], prepare=True)
                assert await cur.fetchone() == (str(round_),)
                cur = await conn.execute("SELECT count(*) FROM pg_prepared_statements")
                assert await cur.fetchone() != (0,), "the test's own premise"
        assert len(backends) == 1


async def test_psycopg_does_not_evict_what_a_discard_has_dropped(dsn: str) -> None:
    """Making room for new statements must not name old ones, which the server has forgotten."""
    async with AsyncConnectionPool(dsn, min_size=1, reset="discard") as pool:
        for _ in range(3):
            async with pool.connection() as conn:
                conn.prepared_max = 2
                for number in range(6):
                    query = f"SELECT {number}, %s::int".encode()
                    await conn.execute(query, [number], prepare=True)
        assert (await at_rest(pool)).connects == 1


@needs_internals
@pytest.mark.parametrize("state", ["clean", "in a transaction", "in a failed transaction"])
@pytest.mark.parametrize("level", ["rollback", "session", "discard"])
async def test_a_named_reset_takes_one_round_trip(dsn: str, level: Level, state: str) -> None:
    """Roll-back included; and nothing at all where there is nothing to be done."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1, reset=level) as pool:
        await pool.wait()
        for _ in range(3):
            conn = await pool.acquire()
            if state != "clean":
                await conn.execute("CREATE TEMP TABLE scratch (x int)")
            if state == "in a failed transaction":
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await conn.execute("SELECT 1/0")
            before = proxy.turns
            await pool.release(conn)
            await at_rest(pool)
            expected = 0 if (level, state) == ("rollback", "clean") else 1
            assert proxy.turns - before == expected
        assert proxy.accepted == 1


async def test_the_named_resets_leave_a_rolled_back_session_behind(dsn: str) -> None:
    """A table made in a transaction that was left open is not there, whatever else is reset."""
    for level in ("rollback", "session", "discard"):
        async with AsyncConnectionPool(dsn, min_size=1, reset=level) as pool:
            conn = await pool.acquire()
            await conn.execute("CREATE TABLE left_behind (x int)")
            await pool.release(conn)
            assert await pool.fetchval("SELECT to_regclass('left_behind')::text") is None


async def test_reset_callback_gets_every_returned_connection_out_of_its_transaction(
    dsn: str,
) -> None:
    """Clean or not, it is called with a connection that has none open and knows its pool."""
    seen: list[tuple[bool, Any]] = []

    async def reset(conn: psycopg.AsyncConnection[Any]) -> None:
        idle = conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        seen.append((idle, conn._pool))
        await conn.execute("RESET ALL")
        await conn.commit()

    async with AsyncConnectionPool(dsn, min_size=1, reset=reset) as pool:
        at_once(pool.release(await pool.acquire()))
        async with pool.connection() as conn:
            await conn.execute("SET app.tenant_id = '42'")
        conn = await pool.acquire()
        await conn.execute("SELECT 1")
        await pool.release(conn)
        await at_rest(pool)
        assert seen == [(True, pool)] * 3
        assert conn._pool is None
        assert pool.stats().connects == 1


async def fail(conn: psycopg.AsyncConnection[Any]) -> None:
    raise RuntimeError("no wish to reset")


async def leave_open(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("SELECT 1")


async def break_it(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def close_it(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.close()


@pytest.mark.parametrize("reset", [fail, leave_open, break_it, close_it])
async def test_a_reset_that_goes_wrong_costs_the_connection_and_nothing_else(
    dsn: str, reset: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is replaced, a waiter is served, and a line in the log has the reason."""
    async with AsyncConnectionPool(dsn, min_size=1, reset=reset) as pool:
        conn = await pool.acquire()
        waiter = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(conn)
        fresh = await in_time(waiter)
        assert fresh is not conn
        assert await backend_of(fresh)
        await pool.release(fresh)
        await at_rest(pool)
    assert conn.closed
    assert "reset failed" in caplog.text


async def test_a_reset_that_never_ends_holds_up_neither_others_nor_close(dsn: str) -> None:
    """The pool's own task waits for it, nobody else does."""

    async def reset(conn: psycopg.AsyncConnection[Any]) -> None:
        await asyncio.Event().wait()

    pool = AsyncConnectionPool(dsn, min_size=2, reset=reset)
    await pool.open(wait=True)
    await pool.release(await pool.acquire())
    async with pool.connection(timeout=5) as conn:
        await conn.execute("SELECT 1")
    assert pool.stats().cleaning == 2
    await in_time(pool.close(timeout=0.1), 5)
    assert pool.stats().size == 0


async def test_an_unknown_level_is_refused_by_name() -> None:
    """The error lists those that there are."""
    with pytest.raises(ValueError, match="rollback, session, discard"):
        AsyncConnectionPool("", reset="everything")  # type: ignore[arg-type]


async def test_a_lost_connection_is_replaced_when_it_cannot_be_reset(dsn: str) -> None:
    """A reset that finds the server gone is no crash of the pool's task."""
    async with AsyncConnectionPool(dsn, min_size=2, reset="session") as pool:
        async with pool.connection() as conn:
            pid = await backend_of(conn)
            async with pool.connection() as other:
                await other.execute("SELECT pg_terminate_backend(%s)", [pid])
        await all_usable(pool)
