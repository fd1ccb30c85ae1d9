"""Users' callables that raise CancelledError by themselves, or never return."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    Connection,
    PoolClosed,
    PoolTimeout,
)
from asyncpool._psycopg import callbacks, closing
from tests._tools import few

from ._tools import BOTH_LOOPS, Backends, Proxy, all_usable, at_rest, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS = BOTH_LOOPS
POOLS = [AsyncConnectionPool, AsyncNullConnectionPool]
CALLABLES = ["conninfo", "kwargs", "configure"]


def pool_of(
    kind: type[AsyncConnectionPool],
    dsn: str,
    name: str,
    before: Callable[[], Awaitable[None]],
    **options: Any,
) -> AsyncConnectionPool:
    """Return a pool whose callable of this name first awaits `before`."""

    async def conninfo() -> str:
        await before()
        return dsn

    async def kwargs() -> dict[str, Any]:
        await before()
        return {}

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await before()

    given: dict[str, Any] = {"conninfo": dsn, "max_size": 2} | options
    given[name] = {"conninfo": conninfo, "kwargs": kwargs, "configure": configure}[name]
    return kind(**given)


async def of_a_cancelled_future() -> None:
    """Await a shared token fetch that another task has cancelled."""
    fetch = asyncio.get_running_loop().create_future()
    fetch.cancel()
    await fetch


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("name", CALLABLES)
async def test_a_callable_that_was_cancelled_is_a_failed_connect_and_called_again(
    dsn: str, backends: Backends, name: str, kind: type[AsyncConnectionPool]
) -> None:
    """The waiter waits for the next connect, as with any other error."""
    calls = 0

    async def before() -> None:
        nonlocal calls
        calls += 1
        if calls <= 2:
            await of_a_cancelled_future()

    async with pool_of(kind, dsn, name, before, min_size=0) as pool:
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        assert pool.stats().connects_failed == 2


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("name", CALLABLES)
async def test_a_callable_that_is_always_cancelled_is_the_cause_of_the_timeout(
    dsn: str, backends: Backends, name: str, kind: type[AsyncConnectionPool]
) -> None:
    """The cause names the callable, and has the CancelledError as its own cause."""
    async with pool_of(kind, dsn, name, of_a_cancelled_future, min_size=0) as pool:
        with pytest.raises(PoolTimeout, match=f"{name} raised CancelledError") as caught:
            await pool.getconn(timeout=0.3)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert isinstance(caught.value.__cause__.__cause__, asyncio.CancelledError)
        assert name in (pool.explain().last_error or "")
        await eventually(lambda: not backends.pids())


async def cancel_this_task() -> None:
    """Cancel the connect from inside of it."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def raise_generator_exit() -> None:
    """Raise what ends a coroutine."""
    raise GeneratorExit


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("end", [cancel_this_task, raise_generator_exit])
@pytest.mark.parametrize("name", CALLABLES)
async def test_a_callable_that_ends_the_connects_task_is_called_again(
    dsn: str,
    name: str,
    end: Callable[[], Awaitable[None]],
    kind: type[AsyncConnectionPool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The waiters get another connect, and the log has a line."""
    calls = 0

    async def before() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await end()

    async with pool_of(kind, dsn, name, before, min_size=0, max_size=1) as pool:
        assert await in_time(pool.fetchval("SELECT 1"), 5.0) == 1
    assert "a connect was ended by" in caplog.text
    caplog.clear()  # a GeneratorExit is logged as a crash


async def test_a_connect_of_the_users_own_class_may_be_cancelled_too(dsn: str) -> None:
    """Such a `connect` counts as a failed connect too."""
    calls = 0

    class Own(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                await of_a_cancelled_future()
            return await super().connect(*args, **kwargs)

    async with (
        AsyncConnectionPool(dsn, min_size=1, connection_class=Own) as pool,
        pool.connection(timeout=5) as conn,
    ):
        await conn.execute("SELECT 1")


async def test_an_exit_that_a_test_framework_raises_is_a_failed_connect(dsn: str) -> None:
    """A BaseException of a library, such as pytest's, does not stop the pool."""
    calls = 0

    async def before() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            pytest.fail("in the configure of a test")

    async with pool_of(AsyncConnectionPool, dsn, "configure", before, min_size=1) as pool:
        assert await in_time(pool.fetchval("SELECT 1")) == 1


@pytest.mark.parametrize("name", CALLABLES)
async def test_closing_while_a_callable_runs_cancels_it(dsn: str, name: str) -> None:
    """The connect does not count as failed."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def before() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    pool = pool_of(AsyncConnectionPool, dsn, name, before, min_size=1)
    await pool.open()
    await in_time(begun.wait())
    await in_time(pool.close())
    assert ended.is_set()
    assert pool.stats().connects_failed == 0


async def test_a_shared_fetch_that_one_closed_pool_cancels_fails_no_other(dsn: str) -> None:
    """Without a shield the fetch is cancelled with the first pool's connect."""
    fetch: asyncio.Task[Any] | None = None
    go_on = asyncio.Event()

    async def before() -> None:
        nonlocal fetch
        if fetch is None or fetch.cancelled():
            fetch = asyncio.create_task(go_on.wait())
        await fetch

    first = pool_of(AsyncConnectionPool, dsn, "conninfo", before, min_size=1)
    second = pool_of(AsyncConnectionPool, dsn, "conninfo", before, min_size=1)
    await first.open()
    async with second:
        await eventually(lambda: fetch)
        await asyncio.sleep(0)
        await first.close()
        go_on.set()
        assert await in_time(second.fetchval("SELECT 1")) == 1


async def test_a_check_that_was_cancelled_cancels_its_caller(dsn: str, backends: Backends) -> None:
    """The error is raised as in psycopg_pool, and the pool stays usable."""
    calls = 0

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await of_a_cancelled_future()

    async with AsyncConnectionPool(dsn, min_size=1, max_size=2, check=check) as pool:
        with pytest.raises(asyncio.CancelledError):
            await pool.getconn(timeout=5)
        assert pool.stats().requests_cancelled == 1
        await all_usable(pool)
    with pytest.raises(PoolClosed):
        await pool.getconn()


async def test_a_check_that_fails_a_test_keeps_no_connection(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A BaseException is raised, and the connection is replaced."""
    calls = 0

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            pytest.fail("in the check of a test")

    async with AsyncConnectionPool(dsn, min_size=1, max_size=2, check=check) as pool:
        with pytest.raises(pytest.fail.Exception):
            await pool.getconn(timeout=5)
        await all_usable(pool)
    caplog.clear()  # the crash of the check's task was logged


async def test_a_check_that_close_ends_raises_that_the_pool_is_closed(dsn: str) -> None:
    """The pool itself cancels the check."""
    begun = asyncio.Event()

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        begun.set()
        await asyncio.Event().wait()

    pool = AsyncConnectionPool(dsn, min_size=1, check=check)
    await pool.open()
    borrower = asyncio.create_task(pool.getconn())
    await in_time(begun.wait())
    await pool.close(timeout=0)
    with pytest.raises(PoolClosed):
        await in_time(borrower)


async def test_a_reset_that_was_cancelled_costs_its_connection_only(dsn: str) -> None:
    """The connection is replaced."""
    calls = 0

    async def reset(conn: psycopg.AsyncConnection[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await of_a_cancelled_future()

    async with AsyncConnectionPool(dsn, min_size=1, max_size=2, reset=reset) as pool:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        await all_usable(pool)


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a limit that a test can wait for."""
    monkeypatch.setattr(callbacks, "CALL_TIMEOUT", 0.2)


@pytest.mark.usefixtures("short_limit")
@pytest.mark.parametrize("kind", few(POOLS))
@pytest.mark.parametrize("name", few(CALLABLES))
@pytest.mark.exhaustive
async def test_a_callable_that_never_returns_loses_its_place(
    dsn: str, backends: Backends, name: str, kind: type[AsyncConnectionPool]
) -> None:
    """The callable's time limit expires, the error names it, and the next connect may succeed."""
    hanging = True

    async def before() -> None:
        if hanging:
            await asyncio.Event().wait()

    options = {"min_size": 0, "max_size": 1}
    async with pool_of(kind, dsn, name, before, **options) as pool:
        with pytest.raises(PoolTimeout, match=f"{name} did not return within 0.2 s") as caught:
            await pool.getconn(timeout=1)
        assert isinstance(caught.value.__cause__, TimeoutError)
        hanging = False
        assert await in_time(pool.fetchval("SELECT 1")) == 1


@pytest.mark.usefixtures("short_limit")
async def test_a_time_limit_inside_a_callable_is_its_own_error(dsn: str) -> None:
    """A TimeoutError of the callable is not reported as the pool's limit."""

    async def before() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    async with pool_of(AsyncConnectionPool, dsn, "conninfo", before, min_size=0) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.getconn(timeout=0.1)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert "did not return" not in str(caught.value)
        assert (await at_rest(pool)).requests_timed_out == 1


class CloseFails(Connection[Any]):
    """A connection whose own `close()` raises."""

    async def close(self) -> None:
        """Fail."""
        raise RuntimeError("close failed")


class CloseHangs(Connection[Any]):
    """A connection whose own `close()` never returns."""

    async def close(self) -> None:
        """Hang."""
        await asyncio.Event().wait()


class CloseIsCancelled(Connection[Any]):
    """A connection whose own `close()` raises CancelledError by itself."""

    async def close(self) -> None:
        """Await what somebody has cancelled."""
        await of_a_cancelled_future()


async def test_a_close_that_was_cancelled_still_waits_for_the_server(
    dsn: str, backends: Backends
) -> None:
    """The place is free once the server has hung up, as with any other close."""
    async with Proxy(dsn) as proxy:
        proxy.tells_of_the_end = False
        pool = AsyncConnectionPool(proxy.dsn, min_size=1, connection_class=CloseIsCancelled)
        async with pool:
            await at_rest(pool)
            closing = asyncio.create_task(pool.close())
            await eventually(lambda: not backends.pids())
            assert pool.stats().closing == 1
            proxy.cut()
            await in_time(closing)


@pytest.mark.usefixtures("short_limit")
@pytest.mark.parametrize("own", [Connection, psycopg.AsyncConnection])
async def test_a_configure_that_is_interrupted_leaves_no_backend_behind(
    dsn: str, backends: Backends, own: Any
) -> None:
    """The statement is cancelled and the backend gone before the next connection is opened."""
    seen: list[int] = []

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        seen.append(len(backends.pids()))
        await conn.execute("SELECT pg_sleep(60)")

    pool = AsyncConnectionPool(
        dsn, min_size=1, max_size=1, configure=configure, connection_class=own
    )
    await pool.open()
    await eventually(lambda: len(seen) >= 3)
    await pool.close()
    assert set(seen) == {1}
    assert not backends.pids()


@pytest.mark.parametrize("own", [CloseFails, CloseHangs])
async def test_a_close_of_the_users_own_keeps_no_connection_that_configure_failed_on(
    dsn: str, backends: Backends, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed in any case, and the next one may succeed."""
    monkeypatch.setattr(closing, "CANCEL_TIMEOUT", 0.1)
    conns = []

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        conns.append(conn)
        if len(conns) <= 2:
            raise ValueError("not yet")

    options: dict[str, Any] = {"connection_class": own, "configure": configure}
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1, **options) as pool:
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        assert len(conns) == 3
        assert len(backends.pids()) == 1


async def test_a_configure_that_is_abandoned_with_its_loop_closes_its_socket(
    dsn: str, backends: Backends
) -> None:
    """Nothing can be awaited any more."""

    def run() -> None:
        loop = asyncio.new_event_loop()
        pool = AsyncConnectionPool(dsn, min_size=1, configure=configure, open=False)
        loop.run_until_complete(pool.open())
        loop.run_until_complete(asyncio.wait_for(begun.wait(), 10))
        loop.close()
        asyncio.run(pool.close())

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    await asyncio.to_thread(run)
    await eventually(lambda: not backends.pids())
    gc.collect()  # it would be reported here if the connect had not ended
