"""procrastinate on this pool: its worker, its jobs and the program's own statements share it.

Run it (it creates procrastinate's tables, and the table `greetings`):

    pip install psycopg-asyncpool psycopg_pool procrastinate
    export DATABASE_URL=postgresql://localhost/postgres
    python examples/procrastinate_worker.py add Ada Bob     # defer a job for each
    python examples/procrastinate_worker.py                 # run jobs until Ctrl-C or SIGTERM

procrastinate asks for a psycopg_pool pool, which the pool of `asyncpool.compat` is too. Its worker
is woken by a notification on a connection of its own, besides the pool's. Its remark on the main
module is for tasks without a `name`.
"""

from __future__ import annotations

import asyncio
import os
import sys

from procrastinate import App, JobContext, PsycopgConnector

from asyncpool.compat import AsyncConnectionPool

JOBS = 4
"""Jobs that a worker runs at the same time."""

app = App(connector=PsycopgConnector())


@app.task(name="greet", pass_context=True)
async def greet(context: JobContext, name: str) -> None:
    """Greet somebody, and write it down."""
    pool: AsyncConnectionPool = context.additional_context["pool"]
    print(f"Hello, {name}!", flush=True)
    await pool.execute("INSERT INTO greetings (name) VALUES (%s)", [name])


async def prepare(pool: AsyncConnectionPool) -> None:
    """Create the tables that are not there."""
    await pool.execute("CREATE TABLE IF NOT EXISTS greetings (name text NOT NULL)")
    if await pool.fetchval("SELECT to_regclass('procrastinate_jobs')") is None:
        await app.schema_manager.apply_schema_async()


async def add(names: list[str]) -> None:
    """Defer one job for each name."""
    for name in names:
        await greet.defer_async(name=name)


async def work(pool: AsyncConnectionPool) -> None:
    """Run jobs until a signal comes or this is cancelled; jobs that have begun are finished."""
    print("working; Ctrl-C stops", flush=True)
    await app.run_worker_async(concurrency=JOBS, additional_context={"pool": pool})


async def main(arguments: list[str]) -> None:
    """Defer jobs for the arguments `add NAME...`; without arguments, work."""
    async with (
        AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=JOBS) as pool,
        app.open_async(pool),
    ):
        await prepare(pool)
        if arguments[:1] == ["add"]:
            await add(arguments[1:])
        else:
            await work(pool)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
