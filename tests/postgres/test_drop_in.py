"""Rules of psycopg_pool's documentation, tested on both pools by one set of tests.

Where they knowingly differ is said in `test_drop_in_differs.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from ._tools import backend_of, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ._tools import Backends

IDLE, INTRANS = TransactionStatus.IDLE, TransactionStatus.INTRANS


@pytest.fixture
async def table(dsn: str, backends: Backends) -> AsyncIterator[str]:
    """A table with one column of int."""
    name = f"t{uuid4().hex[:8]}"
    backends.ask(f"CREATE TABLE {name} (x int)")
    yield name
    backends.ask(f"DROP TABLE {name}")


async def idle(pool: Any, number: int) -> None:
    """Wait until that many are in the pool."""
    await eventually(lambda: pool.get_stats()["pool_available"] == number)


async def in_line(pool: Any, number: int) -> None:
    """Wait until that many are in the line."""
    await eventually(lambda: pool.get_stats()["requests_waiting"] == number)


# connection(), getconn(), putconn()


async def test_a_block_commits_or_rolls_back_and_returns(lib: Any, dsn: str, table: str) -> None:
    """The block does what psycopg's own block does."""

    async def insert(pool: Any, number: int) -> None:
        async with pool.connection() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES ({number})")
            if number < 0:
                raise LookupError

    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        await insert(pool, 1)
        with pytest.raises(LookupError):
            await insert(pool, -1)
        async with pool.connection() as conn:
            assert conn.pgconn.transaction_status == IDLE
            cur = await conn.execute(f"SELECT x FROM {table}")
            assert await cur.fetchall() == [(1,)]
        await idle(pool, 1)
        assert pool.get_stats()["connections_num"] == 1


async def test_what_is_put_back_in_a_transaction_is_rolled_back(
    lib: Any, dsn: str, table: str
) -> None:
    """`putconn` commits nothing."""
    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        for statement in (f"INSERT INTO {table} VALUES (1)", "SELECT 1"):
            conn = await pool.getconn()
            await conn.execute(statement)
            assert conn.pgconn.transaction_status == INTRANS
            await pool.putconn(conn)
            await idle(pool, 1)
        conn = await pool.getconn()
        assert conn.pgconn.transaction_status == IDLE
        cur = await conn.execute(f"SELECT count(*) FROM {table}")
        assert await cur.fetchone() == (0,)
        await pool.putconn(conn)
        await idle(pool, 1)
        assert pool.get_stats()["connections_num"] == 1


async def test_what_is_put_back_after_an_error_is_usable(lib: Any, dsn: str) -> None:
    """In the same session."""
    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.getconn()
        pid = conn.info.backend_pid
        with pytest.raises(psycopg.errors.SyntaxError):
            await conn.execute("WAT")
        await pool.putconn(conn)
        async with pool.connection() as conn:
            assert await backend_of(conn) == pid


@pytest.mark.parametrize("way", ["closed", "terminated"])
async def test_what_is_put_back_broken_is_replaced_and_counted(
    lib: Any, dsn: str, backends: Backends, way: str
) -> None:
    """It counts as `returns_bad`, and `putconn` raises nothing."""
    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.getconn()
        pid = await backend_of(conn)
        if way == "closed":
            await conn.close()
        else:
            backends.terminate(pid)
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT 1")
        await pool.putconn(conn)
        async with pool.connection() as conn:
            assert await backend_of(conn) != pid
        assert pool.get_stats()["returns_bad"] == 1


async def test_only_connections_leased_from_the_pool_are_accepted(lib: Any, dsn: str) -> None:
    """Another pool's, nobody's, and one that is back already are refused and left alone."""
    async with (
        lib.AsyncConnectionPool(dsn, min_size=1) as pool,
        lib.AsyncConnectionPool(dsn, min_size=1) as other,
        await psycopg.AsyncConnection.connect(dsn) as nobodys,
    ):
        with pytest.raises(ValueError, match="can"):
            await pool.putconn(nobodys)
        conn = await pool.getconn()
        with pytest.raises(ValueError, match=pool.name):
            await other.putconn(conn)
        await conn.execute("SELECT 1")
        await pool.putconn(conn)
        with pytest.raises(ValueError, match=pool.name):
            await pool.putconn(conn)
        assert not nobodys.closed
        await idle(pool, 1)


async def test_waiters_are_served_in_turn(lib: Any, dsn: str) -> None:
    """By what comes back."""
    served: list[int] = []

    async def use(number: int) -> None:
        async with pool.connection() as conn:
            served.append(number)
            await conn.execute("SELECT 1")

    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        conn = await pool.getconn()
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(use(number)))
            await in_line(pool, number + 1)
        await pool.putconn(conn)
        await in_time(asyncio.gather(*tasks))
        assert served == [0, 1, 2, 3, 4]
        assert pool.get_stats()["requests_queued"] == 5


@pytest.mark.parametrize("own", [True, False], ids=["argument", "pool"])
async def test_a_request_waits_for_its_time_limit(lib: Any, dsn: str, own: bool) -> None:
    """After its own limit or the pool's, `PoolTimeout` is raised and counted; nothing is lost."""
    async with lib.AsyncConnectionPool(dsn, min_size=1, timeout=30 if own else 0.1) as pool:
        conn = await pool.getconn(timeout=10)
        with pytest.raises(lib.PoolTimeout):
            await in_time(pool.getconn(timeout=0.1) if own else pool.getconn())
        assert pool.get_stats()["requests_errors"] == 1
        await pool.putconn(conn)
        async with pool.connection(timeout=10):
            pass


async def test_the_queue_is_as_long_as_max_waiting(lib: Any, dsn: str) -> None:
    """One more gets `TooManyRequests` at once; what `max_waiting` is may be changed."""
    async with lib.AsyncConnectionPool(dsn, min_size=1, max_waiting=2) as pool:
        conn = await pool.getconn()
        waiting = [asyncio.create_task(pool.getconn()) for _ in range(2)]
        await in_line(pool, 2)
        with pytest.raises(lib.TooManyRequests, match=f"'{pool.name}'.* 2 requests"):
            await pool.getconn()
        pool.max_waiting = 3
        waiting.append(asyncio.create_task(pool.getconn()))
        await in_line(pool, 3)
        for task in waiting:
            await pool.putconn(conn)
            conn = await in_time(task)
        await pool.putconn(conn)
        assert pool.get_stats()["requests_errors"] == 1


# configure, reset, check


async def test_configure_has_each_connection_first_and_must_leave_it_idle(
    lib: Any, dsn: str
) -> None:
    """One that it leaves in a transaction is discarded; whoever waits gets the next."""
    seen: list[int] = []

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        seen.append(conn.info.backend_pid)
        await conn.execute("SET application_name = 'configured'")
        if len(seen) > 1:
            await conn.commit()

    async with lib.AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        async with pool.connection() as conn:
            pid = conn.info.backend_pid
            cur = await conn.execute("SHOW application_name")
            assert await cur.fetchone() == ("configured",)
        assert len(seen) == 2
        assert pid == seen[1]


@pytest.mark.parametrize("way", ["raises", "leaves a transaction", "closes"])
async def test_a_connection_that_reset_spoils_is_replaced(lib: Any, dsn: str, way: str) -> None:
    """`reset` gets each connection idle, and must leave it so."""
    given: list[TransactionStatus] = []

    async def reset(conn: psycopg.AsyncConnection[Any]) -> None:
        given.append(TransactionStatus(conn.pgconn.transaction_status))
        if len(given) == 1 and way == "raises":
            raise LookupError
        if len(given) == 1 and way == "closes":
            await conn.close()
        elif len(given) == 1:
            await conn.execute("SELECT 1")

    async with lib.AsyncConnectionPool(dsn, min_size=1, reset=reset) as pool:
        pids = []
        for _ in range(3):
            conn = await in_time(pool.getconn())
            pids.append(await backend_of(conn))
            await conn.execute("SELECT 1")
            await pool.putconn(conn)
            await idle(pool, 1)
        assert given == [IDLE] * 3
        assert pids[0] != pids[1] == pids[2]


async def test_check_replaces_what_it_does_not_like(lib: Any, dsn: str) -> None:
    """The request gets another, within its own time limit."""
    asked: list[psycopg.AsyncConnection[Any]] = []

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        asked.append(conn)
        if len(asked) == 1:
            await conn.close()
            raise LookupError

    async with lib.AsyncConnectionPool(dsn, min_size=1, check=check) as pool:
        async with pool.connection() as conn:
            assert conn is asked[1] is not asked[0]
        assert pool.get_stats()["connections_lost"] == 1


async def test_a_check_that_never_likes_one_ends_at_the_time_limit(lib: Any, dsn: str) -> None:
    """In `PoolTimeout`."""

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        raise LookupError

    async with lib.AsyncConnectionPool(dsn, min_size=1, check=check) as pool:
        with pytest.raises(lib.PoolTimeout):
            await in_time(pool.getconn(timeout=0.3))


async def test_the_ready_made_check_finds_what_is_dead(
    lib: Any, dsn: str, backends: Backends
) -> None:
    """Given as `check=`, no request runs into a terminated connection."""
    kind = lib.AsyncConnectionPool
    async with kind(dsn, min_size=2, check=kind.check_connection) as pool:
        await pool.wait()
        backends.terminate()
        for _ in range(3):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")


# check(), drain(), resize()


async def test_check_replaces_what_is_broken_and_keeps_the_rest(
    lib: Any, dsn: str, backends: Backends
) -> None:
    """`check()` looks at those in the pool, and counts what it has lost."""
    async with lib.AsyncConnectionPool(dsn, min_size=3) as pool:
        await pool.wait()
        before = backends.pids()
        backends.terminate(min(before))
        await pool.check()
        await idle(pool, 3)
        after = backends.pids()
        assert len(before & after) == 2
        assert len(after) == 3
        assert pool.get_stats()["connections_lost"] == 1
        async with pool.connection() as conn:
            assert conn.pgconn.transaction_status == IDLE


async def test_drain_replaces_leased_connections_at_their_return(
    lib: Any, dsn: str, backends: Backends
) -> None:
    """And those in the pool at once."""
    async with lib.AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        before = backends.pids()
        conn = await pool.getconn()
        await pool.drain()
        await eventually(lambda: len(backends.pids() & before) == 1)
        await conn.execute("SELECT 1")
        await pool.putconn(conn)
        await idle(pool, 2)
        await eventually(lambda: len(backends.pids()) == 2)
        assert not backends.pids() & before


async def test_resize_opens_what_the_new_minimum_asks_for(lib: Any, dsn: str) -> None:
    """And lets the pool grow to the new maximum."""
    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        await pool.resize(3, 5)
        await idle(pool, 3)
        assert (pool.min_size, pool.max_size) == (3, 5)
        conns = [await in_time(pool.getconn()) for _ in range(5)]
        assert pool.get_stats()["pool_size"] == 5
        await pool.resize(2)
        assert (pool.min_size, pool.max_size) == (2, 2)
        for conn in conns:
            await pool.putconn(conn)


@pytest.mark.parametrize("sizes", [(-1, 2), (3, 2), (0, 0), (0, None)])
async def test_sizes_that_make_no_sense_are_refused(
    lib: Any, dsn: str, sizes: tuple[int, int | None]
) -> None:
    """With `ValueError`, in the constructor and in `resize`, which changes nothing."""
    with pytest.raises(ValueError, match="size"):
        lib.AsyncConnectionPool(dsn, min_size=sizes[0], max_size=sizes[1], open=False)
    async with lib.AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        with pytest.raises(ValueError, match="size"):
            await pool.resize(*sizes)
        assert (pool.min_size, pool.max_size) == (1, 2)


async def test_a_connection_past_its_life_is_replaced_at_its_return(lib: Any, dsn: str) -> None:
    """The borrower may keep the connection beyond its lifetime."""
    async with lib.AsyncConnectionPool(dsn, min_size=1, max_lifetime=0.2) as pool:
        conn = await pool.getconn()
        pid = await backend_of(conn)
        await asyncio.sleep(0.3)
        assert await backend_of(conn) == pid
        await pool.putconn(conn)
        async with pool.connection() as conn:
            assert await backend_of(conn) != pid


# How a callback of the user's hears of an outage


@pytest.mark.parametrize("way", ["plain", "async", "method"])
async def test_reconnect_failed_gets_the_pool(lib: Any, way: str) -> None:
    """A plain function, an async one, or a method of the user's own class."""
    told: list[Any] = []

    def plain(pool: Any) -> None:
        told.append(pool)

    async def later(pool: Any) -> None:
        await asyncio.sleep(0)
        told.append(pool)

    class Mine(lib.AsyncConnectionPool):  # type: ignore[misc]
        async def reconnect_failed(self) -> None:
            told.append(self)

    callbacks: dict[str, Callable[[Any], Any] | None] = {"plain": plain, "async": later}
    kind = Mine if way == "method" else lib.AsyncConnectionPool
    async with kind(
        "host=127.0.0.1 port=1",
        min_size=1,
        reconnect_timeout=0.1,
        reconnect_failed=callbacks.get(way),
    ) as pool:
        await eventually(lambda: told)
        assert told[0] is pool
