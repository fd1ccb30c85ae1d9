"""pgqueuer: a queue on a connection that its own pool leases, with LISTEN and notifications."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool import compat

pgqueuer: Any = pytest.importorskip("pgqueuer")
connections: Any = pytest.importorskip("pgqueuer.adapters.connections")
drivers: Any = pytest.importorskip("pgqueuer.db")
queries: Any = pytest.importorskip("pgqueuer.queries")


@pytest.mark.usefixtures("installed")
async def test_a_queue_runs_jobs(database: str) -> None:
    """The pool that the library makes is ours, and a leased connection carries its queue."""
    done: list[bytes | None] = []
    ran = asyncio.Event()
    async with connections.create_psycopg_pool(database) as pool:
        assert isinstance(pool, compat.AsyncConnectionPool)
        async with pool.connection() as conn:
            await queries.Queries(drivers.PsycopgDriver(conn)).install()
        async with pool.connection() as conn, pool.connection() as other:
            queue = pgqueuer.PgQueuer(drivers.PsycopgDriver(conn))

            async def append(job: Any) -> None:
                done.append(job.payload)
                if len(done) == 5:
                    ran.set()

            queue.entrypoint("append")(append)
            running = asyncio.create_task(queue.run())
            sender = queries.Queries(drivers.PsycopgDriver(other))
            await sender.enqueue(["append"] * 5, [str(n).encode() for n in range(5)], [0] * 5)
            await asyncio.wait_for(ran.wait(), 30)
            queue.shutdown.set()
            await asyncio.wait_for(running, 30)
    assert sorted(map(str, done)) == [f"b'{n}'" for n in range(5)]
