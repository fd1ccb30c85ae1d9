"""Abandoned one-shots in the wait queue leak neither connections nor values."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolTimeout
from tests._tools import at_once

from ._sharing import all_leased, all_waiting, warm
from ._tools import BOTH_LOOPS, Proxy, at_rest, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = needs_internals

LOOPS = BOTH_LOOPS

QUERIES = ["SELECT 1", "SELECT pg_sleep(0)"]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("cancelled", ["before", "after"])
async def test_a_connection_returned_as_who_waits_is_cancelled_is_the_next_ones(
    dsn: str, query: str, cancelled: str
) -> None:
    """Release and cancellation come in one turn, in either order; another may wait or not."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        await warm(pool, query)
        for others in range(3):
            conn = await pool.acquire()
            task = asyncio.ensure_future(pool.fetchval(query))
            await all_waiting(pool, 1)
            rest = [asyncio.ensure_future(pool.fetchval("SELECT 3")) for _ in range(others)]
            await all_waiting(pool, 1 + others)
            release: Callable[[], object] = partial(at_once, pool.release(conn))
            steps = [task.cancel, release]
            for step in steps if cancelled == "before" else reversed(steps):
                step()
            await asyncio.wait({task})
            assert task.cancelled()
            assert await in_time(asyncio.gather(*rest)) == [3] * others
            assert await in_time(pool.fetchval("SELECT 2")) == 2
        assert (await at_rest(pool)).connects == 1


class Large(str):
    """A value that supports weak references, to see when it is freed."""

    __slots__ = ("__weakref__",)


WAYS = ["served", "cancelled", "late in the queue", "late on its connection", "lost"]


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_of_a_queued_one_shot_stays_once_it_has_ended(dsn: str, way: str) -> None:
    """Its values and its caller's context are freed without the garbage collector."""
    rest = {
        "late on its connection": "pg_sleep(1)",
        "lost": "pg_terminate_backend(pg_backend_pid())",
    }
    variable: ContextVar[Large] = ContextVar("variable")
    kept: list[weakref.ref[Large]] = []

    async def call(pool: AsyncConnectionPool) -> None:
        value = Large("x" * 100)
        variable.set(value)
        kept.append(weakref.ref(value))
        query = f"SELECT length(%s), {rest.get(way, 'pg_sleep(0)')}"
        with suppress(psycopg.Error):
            await pool.fetchval(query, [value], timeout=0.1 if way.startswith("late") else None)

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        gc.collect()
        gc.disable()
        try:
            async with all_leased(pool):
                tasks = [asyncio.create_task(call(pool)) for _ in range(2)]
                await all_waiting(pool, 2)
                if way == "cancelled":
                    for task in tasks:
                        task.cancel()
                if way == "late in the queue":
                    await asyncio.wait(tasks)
            await asyncio.wait(tasks)
            del tasks[:]
            task = None  # type: ignore[assignment]
            await at_rest(pool)
            assert [each() for each in kept] == [None, None]
        finally:
            gc.enable()


async def test_a_connection_that_a_cancelled_one_shot_still_has_is_no_deadlock(dsn: str) -> None:
    """Its task waits for the only connection while the cancel request is under way."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, max_size=1) as pool,
    ):
        await pool.fetchval("SELECT 1")
        proxy.open_way.clear()
        try:
            with pytest.raises(PoolTimeout):
                await pool.execute("SELECT pg_sleep(30)", timeout=0.1)
            asyncio.get_running_loop().call_later(0.8, proxy.open_way.set)
            assert await in_time(pool.fetchval("SELECT 1")) == 1
        finally:
            proxy.open_way.set()
