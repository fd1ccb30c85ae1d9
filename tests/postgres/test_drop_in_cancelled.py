"""Any call of the pool may be cancelled: nothing is lost, and no cancellation is swallowed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool

from ._tools import BOTH_LOOPS, LIMIT, Proxy, all_usable, eventually, in_time

LOOPS = BOTH_LOOPS

Pool = AsyncConnectionPool[Any]


async def borrow_and_return(pool: Pool) -> None:
    await pool.putconn(await pool.getconn(timeout=0))


WAITING: dict[str, Callable[[Pool], Awaitable[object]]] = {
    "wait": lambda pool: pool.wait(),
    "open": lambda pool: pool.open(wait=True),
    "check": lambda pool: pool.check(),
    "getconn": lambda pool: pool.getconn(),
    "health": lambda pool: pool.health(timeout=60.0),
    "fetchval": lambda pool: pool.fetchval("SELECT 1"),
}
"""Those that wait for the server."""
PART_OF_THE_SIZE = {
    "check": "cleaning",
    "health": "cleaning",
    "getconn": "waiting",
    "fetchval": "leased",
}
"""The count that a call which waits raises, when all connections are open."""
AT_ONCE: dict[str, Callable[[Pool], Awaitable[object]]] = {
    "drain": lambda pool: pool.drain(),
    "resize": lambda pool: pool.resize(2, 2),
    "open": lambda pool: pool.open(),
    "putconn": borrow_and_return,
}
"""Those that never suspend, so that nothing can be cancelled in them."""
HOW = pytest.mark.parametrize("how", ["once", "twice", "scope"])


def cancellable(
    call: Awaitable[object],
) -> tuple[asyncio.Task[None], anyio.CancelScope]:
    """A call in a task and in a scope, either of which may be cancelled."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await call

    return asyncio.create_task(run()), scope


async def strike(task: asyncio.Task[None], scope: anyio.CancelScope, how: str) -> None:
    """Cancel it that way; it must end at once, and by that."""
    assert not task.done()
    if how == "scope":
        scope.cancel()
    else:
        task.cancel()
        if how == "twice":
            asyncio.get_running_loop().call_soon(task.cancel)
    await in_time(asyncio.wait({task}), 5.0)
    assert task.cancelled() is (how != "scope")
    assert scope.cancelled_caught is (how == "scope")


@HOW
@pytest.mark.parametrize(
    ("name", "ready"),
    [
        *((name, False) for name in ("wait", "open", "getconn", "fetchval")),
        *((name, True) for name in ("check", "health", "getconn", "fetchval")),
    ],
)
async def test_a_cancelled_wait_for_the_server_ends_at_once(
    dsn: str, name: str, how: str, ready: bool
) -> None:
    """While connections are opened, or all are there; the pool is whole when it answers again."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=2, ping_timeout=60.0) as pool,
    ):
        if ready:
            await pool.wait()
        proxy.open_way.clear()
        held = [await pool.getconn() for _ in range(2)] if ready and name == "getconn" else []
        task, scope = cancellable(WAITING[name](pool))
        part = PART_OF_THE_SIZE[name] if ready else "opening"
        await eventually(lambda: getattr(pool.stats(), part) and proxy.accepted)
        await strike(task, scope, how)
        for conn in held:
            await pool.putconn(conn)
        proxy.open_way.set()
        assert not pool.closed
        await in_time(pool.wait())
        await all_usable(pool)
        assert pool.stats().leased == 0


@HOW
@pytest.mark.parametrize("name", AT_ONCE)
async def test_what_does_not_suspend_is_done_though_it_is_cancelled(
    dsn: str, name: str, how: str
) -> None:
    """The cancellation is felt at the caller's next await."""
    reached: list[str] = []

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        with anyio.CancelScope() as scope:
            if how == "scope":
                scope.cancel()
            else:
                task.cancel()
                if how == "twice":
                    task.cancel()
            await AT_ONCE[name](pool)
            reached.append("after the call")
            await asyncio.sleep(0)
            reached.append("after the next await")
        assert scope.cancelled_caught

    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        task = asyncio.create_task(run())
        await in_time(asyncio.wait({task}))
        assert task.cancelled() is (how != "scope")
        if how == "scope":
            task.result()
        assert reached == ["after the call"]
        await all_usable(pool)


@HOW
async def test_close_ends_though_it_is_cancelled(dsn: str, how: str) -> None:
    """A task gets its cancellation at once, a scope once all is closed: either way all is."""
    pool = AsyncConnectionPool(dsn, min_size=2)
    await pool.wait()
    conn = await pool.getconn()
    task, scope = cancellable(pool.close(timeout=0.5))
    await eventually(lambda: pool.closed)
    if how == "scope":
        scope.cancel()
    else:
        task.cancel()
        if how == "twice":
            asyncio.get_running_loop().call_soon(task.cancel)
    await in_time(asyncio.wait({task}))
    assert task.cancelled() is (how != "scope")
    await in_time(pool.close())
    assert conn.closed
    assert pool.stats().size == 0


@HOW
async def test_wait_and_open_may_be_called_again(dsn: str, how: str) -> None:
    """By others at the same time, and while connections are lent."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=2) as pool:
        proxy.open_way.clear()
        pairs = [cancellable(pool.wait()) for _ in range(4)]
        await eventually(lambda: proxy.accepted == 2)
        for task, scope in pairs[:2]:
            await strike(task, scope, how)
        again = asyncio.create_task(pool.open(wait=True))
        proxy.open_way.set()
        await in_time(asyncio.gather(again, *(task for task, _ in pairs[2:])))
        async with pool.connection(), pool.connection():
            await in_time(pool.wait())
        assert pool.stats().connects == 2


@HOW
@pytest.mark.parametrize("name", ["wait", "open", "getconn", "health", "fetchval"])
async def test_the_same_on_a_pool_that_keeps_none(dsn: str, name: str, how: str) -> None:
    """A connection opened for a cancelled request is closed, unless another request takes it."""
    async with Proxy(dsn) as proxy, AsyncNullConnectionPool(proxy.dsn, max_size=2) as pool:
        proxy.open_way.clear()
        task, scope = cancellable(WAITING[name](pool))
        await eventually(lambda: proxy.accepted)
        await strike(task, scope, how)
        proxy.open_way.set()
        await eventually(lambda: pool.stats().size == 0, LIMIT)
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        assert not pool.closed
