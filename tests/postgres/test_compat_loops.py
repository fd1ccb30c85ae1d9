"""A pool of `asyncpool.compat` on a second event loop: its blocks have connections of their own."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import PoolWrongLoop, compat

from ._cli import silence
from ._tools import Backends, at_rest, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Work = Callable[[], Coroutine[Any, Any, Any]]

BACKEND = "SELECT pg_backend_pid()"
PARTS = 30
"""The steps between the beginning and the end of a block at which it is cancelled."""


async def elsewhere(work: Work) -> Any:
    """Run a function on an event loop of another thread, while this one runs."""
    return await in_time(asyncio.to_thread(asyncio.run, work()))


def use(pool: Any, query: str = BACKEND, **options: Any) -> Work:
    """Return a function that runs a statement in a block."""

    async def work() -> Any:
        async with pool.connection(**options) as conn:
            cur = await conn.execute(query)
            return (await cur.fetchone())[0] if cur.description else None

    return work


@pytest.mark.parametrize("kind", [compat.AsyncConnectionPool, compat.AsyncNullConnectionPool])
async def test_a_block_on_another_loop_has_a_connection_of_its_own(
    dsn: str, backends: Backends, kind: Any
) -> None:
    """As configured by the pool, in no statistics, and closed at the end of the block."""
    configured: list[Any] = []

    async def configure(conn: Any) -> None:
        configured.append(conn)

    sizes = {} if kind is compat.AsyncNullConnectionPool else {"min_size": 1}
    async with (
        kind(dsn, max_size=1, configure=configure, **sizes) as pool,
        pool.connection() as conn,
    ):
        own = conn.info.backend_pid
        before = pool.stats()
        assert await elsewhere(use(pool)) != own
        assert len(configured) == 2
        assert backends.pids() == {own}
        after = pool.stats()
        assert (after.size, after.leased, after.requests) == (1, 1, before.requests)
    await eventually(lambda: not backends.pids())


def test_a_loop_may_use_the_pool_while_the_pools_own_stands_still(asyncpool_dsn: str) -> None:
    """One after the other, as in tests and in synchronous parts of a program."""
    with asyncio.Runner() as runner:
        pool = compat.AsyncConnectionPool(asyncpool_dsn, min_size=1, open=False)
        runner.run(pool.open(wait=True))
        first = runner.run(use(pool)())
        with asyncio.Runner() as second:
            assert second.run(use(pool)()) != first
        assert runner.run(use(pool)()) == first
        runner.run(pool.close())


async def test_its_work_is_committed_or_rolled_back_as_in_any_block(
    dsn: str, backends: Backends
) -> None:
    """By whether the block raises."""
    backends.ask("CREATE TABLE elsewhere (number int)")

    async def fail() -> None:
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO elsewhere VALUES (2)")
            raise LookupError

    try:
        async with compat.AsyncConnectionPool(dsn, min_size=1) as pool:
            await elsewhere(use(pool, "INSERT INTO elsewhere VALUES (1)"))
            with pytest.raises(LookupError):
                await elsewhere(fail)
            assert backends.ask("SELECT number FROM elsewhere") == [(1,)]
    finally:
        backends.ask("DROP TABLE elsewhere")


async def test_its_lost_work_is_not_reported_as_done(dsn: str, backends: Backends) -> None:
    """A block that handles the loss of its connection raises at its end, as on the pool's loop."""
    backends.ask("CREATE TABLE elsewhere (number int)")

    async def lose() -> None:
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO elsewhere VALUES (1)")
            with contextlib.suppress(psycopg.OperationalError):
                await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    try:
        async with compat.AsyncConnectionPool(dsn, min_size=1) as pool:
            for place in (lose, partial(elsewhere, lose)):
                with pytest.raises(psycopg.OperationalError, match="is lost"):
                    await place()
            assert backends.ask("SELECT number FROM elsewhere") == []
    finally:
        backends.ask("DROP TABLE elsewhere")


@pytest.mark.parametrize("scoped", [False, True])
@pytest.mark.parametrize("twice", [False, True])
async def test_a_block_that_is_cancelled_at_any_step_leaves_no_session(
    dsn: str, backends: Backends, scoped: bool, twice: bool
) -> None:
    """Nor does it hold a place among the blocks of other loops."""
    pool = compat.AsyncConnectionPool(dsn, min_size=1, max_size=1)

    async def cancelled(steps: int) -> bool:
        """Cancel the block after some steps of its loop; return whether it had ended."""
        scope, ended = anyio.CancelScope(), False

        async def inside() -> None:
            nonlocal ended
            with scope:
                await use(pool)()
                ended = True

        task = asyncio.ensure_future(inside())
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(2 if twice else 1):
            if scoped:
                scope.cancel()
            elif not task.done():
                task.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return ended

    async def all_steps() -> None:
        steps = 1
        while not await in_time(cancelled(steps)):
            steps *= 2
        for part in range(PARTS):
            await in_time(cancelled(steps * part // PARTS))

    async with pool:
        await pool.wait()
        await elsewhere(all_steps)
        assert isinstance(await elsewhere(use(pool)), int)
        await eventually(lambda: len(backends.pids()) == 1)


async def test_as_many_blocks_as_the_pool_has_connections_may_have_one(dsn: str) -> None:
    """The next one is refused as in a pool that is on another loop."""

    async def nested() -> None:
        async with pool.connection(), pool.connection():
            with pytest.raises(PoolWrongLoop, match="run_coroutine_threadsafe"):
                await use(pool)()
        await use(pool)()

    async with compat.AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        await elsewhere(nested)


async def test_a_server_that_does_not_answer_there_is_a_timeout_of_psycopg_pool(dsn: str) -> None:
    """After the time that the block may wait."""
    with silence() as nobody:
        there = [dsn]
        async with compat.AsyncConnectionPool(lambda: there[0], min_size=1) as pool:
            await pool.wait()
            there[0] = nobody
            with pytest.raises(psycopg_pool.PoolTimeout, match=r"another event loop within 0\.05"):
                await elsewhere(use(pool, timeout=0.05))
            there[0] = make_conninfo(dsn, dbname="no such database")
            with pytest.raises(psycopg.OperationalError, match="no such database"):
                await elsewhere(use(pool))
            there[0] = dsn
            assert isinstance(await elsewhere(use(pool)), int)
            await at_rest(pool)


async def test_only_psycopg_pools_block_works_on_another_loop(dsn: str) -> None:
    """What the pool does itself belongs on its loop, and a closed pool is closed everywhere."""
    async with compat.AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()

        async def transaction() -> None:
            async with pool.transaction():
                raise AssertionError

        shots: list[Work] = [
            transaction,
            pool.getconn,
            lambda: pool.fetchval(BACKEND),
        ]
        for shot in shots:
            with pytest.raises(PoolWrongLoop):
                await elsewhere(shot)
    with pytest.raises((compat.PoolClosed, PoolWrongLoop)):
        await elsewhere(use(pool))
