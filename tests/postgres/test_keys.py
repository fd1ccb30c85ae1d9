"""Connections by key, and the other features of psycopg2's pools."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolClosed, PoolTimeout, ReleaseError
from tests._tools import at_once

from ._tools import LIMIT, all_usable, at_rest, backend_of, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from ._tools import Backends

    Use = Callable[[AsyncConnectionPool], Awaitable[Any]]


async def test_a_key_gets_its_connection_again_without_waiting(dsn: str) -> None:
    """`getconn` with the same key returns the same connection, others get other connections."""
    async with AsyncConnectionPool(dsn, min_size=3) as pool:
        await pool.wait()
        mine = await pool.getconn(key="mine")
        yours = await pool.getconn(key=("yours", 1))
        nobodys = await pool.getconn()
        assert len({id(conn) for conn in (mine, yours, nobodys)}) == 3
        assert at_once(pool.getconn(0, key="mine")) is mine
        assert await asyncio.create_task(pool.getconn(0, key=("yours", 1))) is yours
        for conn, key in ((mine, "mine"), (yours, ("yours", 1)), (nobodys, None)):
            await pool.putconn(conn, key)
        assert (await at_rest(pool)).idle == 3


async def test_a_key_is_free_once_its_connection_is_returned(dsn: str) -> None:
    """However a connection is released, its key no longer refers to the ended lease."""

    def by_key(pool: AsyncConnectionPool, conn: Any) -> Awaitable[None]:
        return pool.putconn(conn, "mine")

    def closed(pool: AsyncConnectionPool, conn: Any) -> Awaitable[None]:
        return pool.putconn(conn, "mine", close=True)

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for give in (by_key, AsyncConnectionPool.putconn, AsyncConnectionPool.release, closed):
            conn = await pool.getconn(key="mine")
            await give(pool, conn)
            other = await pool.getconn()  # another lease of the same connection
            with pytest.raises(PoolTimeout):
                await pool.getconn(0, key="mine")
            with pytest.raises(ReleaseError, match="'mine', which holds no connection"):
                await pool.putconn(other, "mine")
            await pool.putconn(other)
        assert not pool._keys.held
        await all_usable(pool)


async def test_two_that_ask_for_a_new_key_get_one_connection(dsn: str) -> None:
    """The second waits for the connection of the first, also in the wait queue."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=3) as pool:
        conns = await asyncio.gather(*(pool.getconn(key=7) for _ in range(5)))
        assert len(set(map(id, conns))) == 1
        assert pool.stats().leased == 1
        await pool.putconn(conns[0], 7)
        held = [await pool.acquire() for _ in range(3)]
        waiting = [asyncio.create_task(pool.getconn(key=7)) for _ in range(5)]
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(held[0])
        assert {id(await in_time(each)) for each in waiting} == {id(held[0])}
        for conn in held:
            await pool.putconn(conn)
        await all_usable(pool)


@pytest.mark.parametrize("end", ["cancelled", "twice", "scope", "short of time"])
async def test_the_second_goes_on_by_itself_where_the_first_gives_up(
    dsn: str, end: Literal["cancelled", "twice", "scope", "short of time"]
) -> None:
    """The second request keeps its own deadline."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        held = await pool.acquire()
        scope = anyio.CancelScope()

        async def ask_first() -> None:
            with scope:
                await pool.getconn(0.05 if end == "short of time" else None, key="k")

        first = asyncio.create_task(ask_first())
        await eventually(lambda: pool.stats().waiting == 1)
        second = asyncio.create_task(pool.getconn(key="k"))
        third = asyncio.create_task(pool.getconn(0.01, key="k"))
        with pytest.raises(
            PoolTimeout, match="another task waits for the connection of the key 'k'"
        ):
            await third
        if end == "scope":
            scope.cancel()
        elif end != "short of time":
            first.cancel()
            if end == "twice":
                await asyncio.sleep(0)
                first.cancel()
        (ended,) = await asyncio.gather(first, return_exceptions=True)
        assert end == "scope" or isinstance(ended, PoolTimeout | asyncio.CancelledError)
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(held)
        assert await in_time(second) is held
        await pool.putconn(held, "k")
        await all_usable(pool)
        assert not pool._keys._acquiring


async def test_the_first_does_not_mind_that_the_second_gives_up(dsn: str) -> None:
    """The first keeps its own place in the wait queue."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        held = await pool.acquire()
        first, second = (asyncio.create_task(pool.getconn(key="k")) for _ in range(2))
        await eventually(lambda: pool.stats().waiting == 1)
        second.cancel()
        await asyncio.wait({second})
        await pool.release(held)
        assert await in_time(first) is held
        assert await pool.getconn(0, key="k") is held
        await pool.putconn(held)
        await all_usable(pool)


async def test_a_key_that_has_none_or_another_takes_nothing_back(dsn: str) -> None:
    """Like psycopg2's "trying to put unkeyed connection"; nothing changes."""
    async with AsyncConnectionPool(dsn, min_size=2, name="books") as pool:
        mine, yours = await pool.getconn(key="mine"), await pool.getconn(key="yours")
        with pytest.raises(ReleaseError, match=r"'books'.*by the key 'mine', which holds <"):
            await pool.putconn(yours, "mine")
        with pytest.raises(ReleaseError, match="'nobodys', which holds no connection"):
            await pool.putconn(mine, "nobodys", close=True)
        assert pool.stats().leased == 2
        assert await pool.getconn(key="mine") is mine
        assert await pool.getconn(key="yours") is yours
        await pool.putconn(mine)
        await pool.putconn(yours)
        for close in (False, True):
            with pytest.raises(ReleaseError, match="released already"):
                await pool.putconn(mine, close=close)
        await all_usable(pool)


async def test_a_key_that_cannot_be_one_is_a_type_error(dsn: str) -> None:
    """Nothing is acquired and nothing released."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(TypeError, match=r"key must be hashable, not \[1\]"):
            await pool.getconn(key=[1])  # type: ignore[arg-type]
        conn = await pool.getconn(key=1)
        with pytest.raises(TypeError, match="key must be hashable"):
            await pool.putconn(conn, {})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout"):
            await pool.getconn(-1, key=2)
        await pool.putconn(conn, 1)
        await all_usable(pool)


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_is_put_back_to_be_closed_is_replaced(
    dsn: str, backends: Backends, key: Hashable | None
) -> None:
    """A healthy connection is replaced too, also in a transaction or when a request waits."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.getconn(key=key)
        old = await backend_of(conn)
        await conn.execute("SELECT 1")
        waiter = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.putconn(conn, close=True)
        fresh = await in_time(waiter)
        assert await backend_of(fresh) != old
        assert conn.closed
        await pool.release(fresh)
        await all_usable(pool)
        assert old not in backends.pids()
        assert pool.stats().returns_bad == 0


async def test_a_connection_that_broke_is_its_keys_until_it_is_put_back(
    dsn: str, backends: Backends
) -> None:
    """The key gets another connection only after the release."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.getconn(key="k")
        backends.terminate(await backend_of(conn))
        assert await pool.getconn(key="k") is conn
        with pytest.raises(psycopg.errors.AdminShutdown):
            await conn.execute("SELECT 1")
        assert await pool.getconn(key="k") is conn
        await pool.putconn(conn, "k")
        fresh = await pool.getconn(key="k")
        assert fresh is not conn
        assert await backend_of(fresh)
        await pool.putconn(fresh, "k")


async def test_a_key_keeps_what_nobody_else_has(dsn: str) -> None:
    """The connection is not a leak, because the next request by the key gets it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await asyncio.create_task(pool.getconn(key="k"))
        with pytest.raises(PoolTimeout):
            await pool.getconn(0.6)  # the pool looks for forgotten leases while a request waits
        assert pool.stats().leaks == 0
        await pool.putconn(await pool.getconn(0, key="k"), "k")
        await all_usable(pool)


async def test_a_key_that_is_forgotten_is_reported_with_its_borrower(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`leak_timeout` finds it; the key keeps its connection, with the work that is open on it."""

    async def begin(pool: AsyncConnectionPool) -> None:
        conn = await pool.getconn(key="k")
        await conn.execute("CREATE TEMP TABLE mine (x int)")

    async with AsyncConnectionPool(dsn, min_size=1, leak_timeout=0.1) as pool:
        await asyncio.create_task(begin(pool), name="beginner")
        await eventually(lambda: pool.stats().leaks)
        (report,) = (text for text in caplog.messages if "longer than leak_timeout" in text)
        assert "beginner" in report
        assert f"{__file__}:{begin.__code__.co_firstlineno + 1} in" in report
        conn = await pool.getconn(0, key="k")
        await conn.execute("SELECT * FROM mine")
        await pool.putconn(conn, "k")
        await all_usable(pool)


async def test_closeall_closes_leased_connections_too(dsn: str, backends: Backends) -> None:
    """psycopg2 does so too; waiters get an error and keys hold no connection."""
    pool = AsyncConnectionPool(dsn, min_size=2)
    conns = [await pool.getconn(key="k"), await pool.getconn()]
    waiters = [asyncio.create_task(pool.getconn(key=key)) for key in ("k2", "k2", None)]
    await eventually(lambda: pool.stats().waiting == 2)
    await pool.closeall()
    assert all(conn.closed for conn in conns)
    await eventually(lambda: not backends.pids())
    for waiter in waiters:
        with pytest.raises(PoolClosed):
            await waiter
    with pytest.raises(PoolClosed):
        await pool.getconn(key="k")
    with pytest.raises(ReleaseError, match="which holds no connection"):
        await pool.putconn(conns[0], "k")
    with pytest.raises(PoolClosed, match="uncommitted work is lost"):
        await pool.putconn(conns[0])
    await pool.closeall()


def test_a_key_has_nothing_on_the_next_event_loop(asyncpool_dsn: str) -> None:
    """The key's connection ended with its event loop."""
    pool = AsyncConnectionPool(asyncpool_dsn, min_size=1)
    kept: list[Any] = []

    async def first() -> None:
        kept.append(await pool.getconn(key="k"))

    async def second() -> None:
        conn = await in_time(pool.getconn(key="k"))
        assert conn is not kept[0]
        await pool.putconn(conn, "k")
        await pool.close()

    asyncio.run(first())
    asyncio.run(second())


EXHAUSTED: dict[str, Use] = {
    "getconn": lambda pool: pool.getconn(timeout=0),
    "getconn by key": lambda pool: pool.getconn(timeout=0, key="k"),
    "connection": lambda pool: pool.connection(timeout=0).__aenter__(),
    "transaction": lambda pool: pool.transaction(timeout=0).__aenter__(),
    "cursor": lambda pool: pool.cursor(timeout=0).__aenter__(),
    "one-shot": lambda pool: pool.fetchval("SELECT 1", timeout=0),
}


@pytest.mark.parametrize("use", EXHAUSTED)
async def test_an_exhausted_pool_says_so_at_once_where_nobody_wants_to_wait(
    dsn: str, use: str
) -> None:
    """`timeout=0` is psycopg2's "connection pool exhausted", with numbers in the error."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection():
            with pytest.raises(PoolTimeout, match=r"max_size=1, size=1, leased=1") as caught:
                await EXHAUSTED[use](pool)
            assert caught.value.timeout == 0
        await all_usable(pool)


@pytest.mark.parametrize("use", EXHAUSTED)
async def test_a_closed_pool_lends_nothing(dsn: str, use: str) -> None:
    """The error is like psycopg2's "connection pool is closed"."""
    pool = AsyncConnectionPool(dsn, min_size=1, name="books")
    await pool.open(wait=True)
    await pool.closeall()
    with pytest.raises(PoolClosed, match="'books' is already closed"):
        await EXHAUSTED[use](pool)


async def test_a_storm_of_cancellations_loses_no_key(dsn: str) -> None:
    """Tasks that share a few keys are cancelled at any point; every connection is released."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        users: dict[int, int] = dict.fromkeys(range(4), 0)

        async def use(key: int) -> None:
            conn = await pool.getconn(key=key)
            users[key] += 1
            try:
                await asyncio.sleep(0.001)
            finally:
                users[key] -= 1
                if not users[key]:
                    await pool.putconn(conn, key)

        for turn in range(40):
            tasks = [asyncio.create_task(use(number % 4)) for number in range(12)]
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            for number, task in enumerate(tasks):
                if (number + turn) % 3 == 0:
                    task.cancel()
            await in_time(asyncio.wait(tasks), LIMIT)
            failed = [each for each in tasks if not each.cancelled() and each.exception()]
            assert not failed, failed[0].exception()
            assert pool.stats().leased == 0
        await all_usable(pool)
