"""A job queue in a table: several workers, no job done twice, none lost, a graceful stop.

Run it (it creates the tables `jobs` and `job_results`):

    pip install psycopg-asyncpool
    export DATABASE_URL=postgresql://localhost/postgres
    python examples/queue_worker.py add 100     # add jobs to the queue
    python examples/queue_worker.py             # work on them until Ctrl-C or SIGTERM

A worker locks a job's row and keeps the transaction open while it works, so that the job's results
and its completion are committed together. If the worker dies, the server rolls both back and
unlocks the row, and another worker takes the job. This suits jobs of seconds, not of hours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress

import psycopg

from asyncpool import AsyncConnectionPool

WORKERS = 4
POLL = 0.5
"""Seconds between two queries of an idle worker."""

TABLES = (
    """CREATE TABLE IF NOT EXISTS jobs (
           id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text NOT NULL,
           done_at timestamptz, error text)""",
    "CREATE INDEX IF NOT EXISTS jobs_to_do ON jobs (id) WHERE done_at IS NULL",
    "CREATE TABLE IF NOT EXISTS job_results (job bigint NOT NULL, result text NOT NULL)",
)
NEXT = """
SELECT id, payload FROM jobs WHERE done_at IS NULL
ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
DONE = "UPDATE jobs SET done_at = now(), error = %s WHERE id = %s"

logger = logging.getLogger("queue_worker")


async def handle(conn: psycopg.AsyncConnection, job: int, payload: str) -> None:
    """Do the work of one job in its transaction."""
    await asyncio.sleep(0.02)
    result = payload.upper()
    await conn.execute("INSERT INTO job_results (job, result) VALUES (%s, %s)", [job, result])


async def do_one(pool: AsyncConnectionPool) -> bool:
    """Do the next job that no other worker has; return whether there was one."""
    async with pool.transaction() as conn:
        cursor = await conn.execute(NEXT)
        if (row := await cursor.fetchone()) is None:
            return False
        job, payload = row
        error = None
        try:
            async with conn.transaction():  # a savepoint: a job that fails leaves only its error
                await handle(conn, job, payload)
        except psycopg.OperationalError:
            raise  # a failure of the server, not of the job: it stays in the queue
        except Exception as failure:  # noqa: BLE001 - any other error is the job's own
            logger.warning("job %d failed: %r", job, failure)
            error = repr(failure)
        await conn.execute(DONE, [error, job])
    return True


async def worker(pool: AsyncConnectionPool, stop: asyncio.Event) -> None:
    """Do jobs until `stop` is set, and finish the current one."""
    while not stop.is_set():
        try:
            if await do_one(pool):
                continue
        except psycopg.OperationalError as error:
            logger.warning("will try again: %s", error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), POLL)


async def work(pool: AsyncConnectionPool, stop: asyncio.Event) -> None:
    """Run the workers until all have stopped."""
    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(worker(pool, stop))


async def prepare(pool: AsyncConnectionPool) -> None:
    """Create the tables."""
    for statement in TABLES:
        await pool.execute(statement)


async def add(pool: AsyncConnectionPool, number: int) -> None:
    """Add jobs to the queue."""
    jobs = [[f"job {n}"] for n in range(number)]
    await pool.executemany("INSERT INTO jobs (payload) VALUES (%s)", jobs)


async def main(arguments: list[str]) -> None:
    """Add N jobs for the arguments `add N`; without arguments, work on jobs."""
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], max_size=WORKERS) as pool:
        await prepare(pool)
        if arguments[:1] == ["add"]:
            await add(pool, int(arguments[1]))
            return
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        print(f"{WORKERS} workers; Ctrl-C stops them", flush=True)
        await work(pool, stop)
        print("stopped: every job begun is done", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1:]))
