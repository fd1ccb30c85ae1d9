"""procrastinate: a worker that waits for LISTEN, jobs in order, and its own calls of the pool."""

from __future__ import annotations

import asyncio
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


async def listening(pool: Any) -> None:
    """Wait until a session of the database waits for notifications."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
    async with asyncio.timeout(30):
        while not await pool.fetchval(query):  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.01)
