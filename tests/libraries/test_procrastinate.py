"""procrastinate: a worker that waits for LISTEN, jobs in order, and its own calls of the pool."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from asyncpool import compat

procrastinate: Any = pytest.importorskip("procrastinate")


@pytest.mark.parametrize("way", ["installed", "pool_factory", "given"])
async def test_a_listening_worker_runs_jobs(database: str, way: str) -> None:
    """It runs those that were deferred before it started, and those that a notification brings."""
    options = {"pool_factory": compat.AsyncConnectionPool} if way == "pool_factory" else {}
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database, **options))
    done: list[int] = []
    ran = asyncio.Event()

    async def append(number: int) -> None:
        done.append(number)
        ran.set()

    add = app.task(append, name="append")

    async def work() -> None:
        assert isinstance(app.connector.pool, compat.AsyncConnectionPool)
        await app.schema_manager.apply_schema_async()
        assert await app.check_connection_async()
        for number in range(5):
            await add.defer_async(number=number)
        await app.run_worker_async(wait=False, install_signal_handlers=False)
        assert done == list(range(5))
        ran.clear()
        # A poll would take far longer than the notification.
        worker = asyncio.create_task(
            app.run_worker_async(fetch_job_polling_interval=600, install_signal_handlers=False)
        )
        await listening(app.connector.pool)
        await add.defer_async(number=5)
        await asyncio.wait_for(ran.wait(), 30)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        assert done == list(range(6))

    if way == "given":
        async with compat.AsyncConnectionPool(database, min_size=1, max_size=4) as pool:
            async with app.open_async(pool):
                await work()
            assert not pool.closed
    elif way == "installed":
        compat.install()
        try:
            async with app.open_async():
                await work()
        finally:
            compat.uninstall()
    else:
        async with app.open_async():
            await work()


async def test_synchronous_calls_in_asgirefs_threads_run_on_the_pools_loop(database: str) -> None:
    """Such as a synchronous task that defers another, and more calls than there are connections."""
    connector = procrastinate.PsycopgConnector(
        conninfo=database, pool_factory=compat.AsyncConnectionPool, min_size=1, max_size=2
    )
    app = procrastinate.App(connector=connector)
    done: list[str] = []
    second = app.task(lambda: done.append("second"), name="second")

    def first() -> None:
        assert second.defer()
        done.append("first")

    before = app.task(first, name="first")
    to_async = pytest.importorskip("asgiref.sync").sync_to_async
    check = to_async(app.check_connection, thread_sensitive=False)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        assert await asyncio.gather(*(check() for _ in range(10))) == [True] * 10
        await before.defer_async()
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert done == ["first", "second"]


async def test_a_synchronous_call_in_another_thread_has_a_connection_of_its_own(
    database: str,
) -> None:
    """procrastinate runs it on an event loop of that thread's, also while the pool is all in use.

    Calls of the app itself go on meanwhile.
    """
    connector = procrastinate.PsycopgConnector(
        conninfo=database, pool_factory=compat.AsyncConnectionPool, min_size=1, max_size=2
    )
    app = procrastinate.App(connector=connector)
    add = app.task(lambda number: number, name="add")
    loop = asyncio.get_running_loop()
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        with ThreadPoolExecutor(1) as executor:
            async with app.connector.pool.connection(), app.connector.pool.connection():
                assert await loop.run_in_executor(executor, app.check_connection)
            for number in range(3):
                await loop.run_in_executor(executor, partial(add.defer, number=number))
                assert await app.check_connection_async()
        assert app.connector.pool.stats().size <= 2
        assert await app.connector.pool.fetchval("SELECT count(*) FROM procrastinate_jobs") == 3


def test_a_synchronous_call_between_two_runs_of_the_loop(database: str) -> None:
    """As in procrastinate's own tests: its app is open on a loop that does not run."""
    connector = procrastinate.PsycopgConnector(
        conninfo=database, pool_factory=compat.AsyncConnectionPool, min_size=1, max_size=2
    )
    app = procrastinate.App(connector=connector)

    async def begin() -> None:
        await app.open_async()
        await app.schema_manager.apply_schema_async()

    with asyncio.Runner() as runner:
        runner.run(begin())
        assert app.check_connection()
        assert runner.run(app.check_connection_async())
        runner.run(app.close_async())


async def listening(pool: Any) -> None:
    """Wait until a session of the database waits for notifications."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
    async with asyncio.timeout(30):
        while not await pool.fetchval(query):  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.01)
