"""The COMMIT at the end of a block: whatever its caller's scopes and tasks do, it is sent once."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool

from ._tools import BOTH_LOOPS, Backends, Proxy, all_usable, eventually, in_time, needs_internals

LOOPS = BOTH_LOOPS
Pool = AsyncConnectionPool[Any]

BLOCKS = pytest.mark.parametrize(
    "way", [AsyncConnectionPool.connection, AsyncConnectionPool.transaction]
)


class Writer:
    """A block that inserts a row, and whose COMMIT does not reach the server until it is let go."""

    def __init__(self, way: Callable[..., Any], pool: Pool, table: str, proxy: Proxy) -> None:
        self._way = partial(way, pool)
        self._query = f"INSERT INTO {table} VALUES (1)"
        self._proxy = proxy
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self.scope = anyio.CancelScope()
        self.errors: list[psycopg.Error] = []

    async def insert(self) -> None:
        """Run the block."""
        async with self._way() as conn:
            await conn.execute(self._query)
            self._proxy.open_way.clear()
            self._conn = conn

    async def _in_scope(self, work: Callable[[], Awaitable[None]]) -> None:
        with self.scope:
            try:
                await work()
            except psycopg.Error as error:
                self.errors.append(error)

    async def started(
        self, work: Callable[[], Awaitable[None]] | None = None
    ) -> asyncio.Task[None]:
        """Run the block, or work with it, in a scope; return when its COMMIT waits."""
        task = asyncio.create_task(self._in_scope(work or self.insert))
        await eventually(lambda: self._conn is not None and self._conn.lock.locked())
        return task


@BLOCKS
async def test_a_scope_that_is_cancelled_waits_for_its_commit(
    dsn: str, backends: Backends, table: str, way: Any
) -> None:
    """The block ends when the server has answered, and the scope's cancellation goes on then."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        writer, steps = Writer(way, pool, table, proxy), []

        async def work() -> None:
            await writer.insert()
            steps.append("committed")
            await asyncio.sleep(0)
            steps.append("went on")

        task = await writer.started(work)
        writer.scope.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        assert backends.rows(table) == []
        proxy.open_way.set()
        await in_time(task)
        assert steps == ["committed"]
        assert writer.scope.cancelled_caught
        assert len(backends.rows(table)) == 1
        assert pool.stats().connects == 1
        await all_usable(pool)


@needs_internals
@BLOCKS
async def test_a_task_cancelled_in_its_commit_leaves_at_once_also_in_a_scope(
    dsn: str, table: str, way: Any
) -> None:
    """task.cancel() is no cancellation of a scope, whether or not a scope is cancelled too."""
    for scope in ("not cancelled", "cancelled before", "cancelled after"):
        async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
            await pool.wait()
            writer = Writer(way, pool, table, proxy)
            task = await writer.started()
            if scope == "cancelled before":
                writer.scope.cancel()
                await asyncio.sleep(0.01)
            task.cancel()
            if scope == "cancelled after":
                writer.scope.cancel()
            await asyncio.wait({task}, timeout=1.0)
            assert task.done()
            proxy.open_way.set()
            await all_usable(pool)


@BLOCKS
async def test_an_error_of_the_commit_is_raised_in_a_cancelled_scope(
    dsn: str, backends: Backends, table: str, way: Any
) -> None:
    """Nothing is committed then, and the block does not end as if it were."""
    backends.ask(f"ALTER TABLE {table} ADD UNIQUE (x) DEFERRABLE INITIALLY DEFERRED")
    backends.ask(f"INSERT INTO {table} VALUES (1)")
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        for cancelled in (False, True):
            writer = Writer(way, pool, table, proxy)
            task = await writer.started()
            if cancelled:
                writer.scope.cancel()
                await asyncio.sleep(0.01)
            proxy.open_way.set()
            await in_time(task)
            assert isinstance(writer.errors[0], psycopg.errors.UniqueViolation)
        assert len(backends.rows(table)) == 1
        await all_usable(pool)


@BLOCKS
async def test_a_commit_whose_connection_is_lost_raises_in_a_cancelled_scope(
    dsn: str, table: str, way: Any
) -> None:
    """Its outcome is unknown, and the block does not end as if it were committed."""
    for cancelled in (False, True):
        async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
            await pool.wait()
            writer = Writer(way, pool, table, proxy)
            task = await writer.started()
            if cancelled:
                writer.scope.cancel()
                await asyncio.sleep(0.01)
            proxy.cut()
            await in_time(task)
            assert isinstance(writer.errors[0], psycopg.OperationalError)
            proxy.open_way.set()
            await all_usable(pool)


@needs_internals
@BLOCKS
async def test_a_scope_cancelled_in_the_turn_of_the_answer_is_committed(
    dsn: str, backends: Backends, table: str, way: Any
) -> None:
    """The answer is not lost, whichever of the two comes first in a turn of the loop."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        for number in range(1, 41):
            ended: list[bool] = []

            async def work(scope: anyio.CancelScope, ended: list[bool]) -> None:
                with scope:
                    async with way(pool) as conn:
                        await conn.execute(f"INSERT INTO {table} VALUES (1)")
                        loop = asyncio.get_running_loop()
                        loop.call_later(number / 80_000, scope.cancel)  # noqa: B023
                    ended.append(True)

            await in_time(work(anyio.CancelScope(), ended))
            assert ended == [True], number
        assert len(backends.rows(table)) == 40
        assert pool.stats().connects == 1


@BLOCKS
async def test_a_deadline_limits_the_wait_for_a_commit(
    dsn: str, table: str, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller learns that the outcome is unknown, some time after the deadline."""
    monkeypatch.setattr("asyncpool._blocks.commit.GRACE", 0.1)
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        with pytest.raises(psycopg.OperationalError, match="outcome is unknown"):
            with anyio.fail_after(0.1):
                await in_time(Writer(way, pool, table, proxy).insert())
        proxy.open_way.set()
        await all_usable(pool)


@needs_internals
async def test_an_overridden_or_patched_commit_is_called(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tracer may have patched it."""
    commits = []
    original = psycopg.AsyncConnection.commit

    async def commit(self: psycopg.AsyncConnection[Any]) -> None:
        commits.append(self)
        await original(self)

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        monkeypatch.setattr(psycopg.AsyncConnection, "commit", commit)
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        assert commits == [conn]


async def test_the_error_of_a_commit_goes_with_its_frames(dsn: str) -> None:
    """No reference cycle keeps it, and with it the connection, until a collection."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.execute("DROP TABLE IF EXISTS at_commit")
        await pool.execute("CREATE TABLE at_commit (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        gc.collect()
        gc.disable()
        try:
            try:
                async with pool.transaction() as conn:
                    await conn.execute("INSERT INTO at_commit VALUES (1), (1)")
            except psycopg.errors.UniqueViolation as error:
                seen = weakref.ref(error)
            assert await eventually(lambda: seen() is None)
        finally:
            gc.enable()
        await pool.execute("DROP TABLE at_commit")
