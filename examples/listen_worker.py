"""A worker that LISTENs: it handles orders as they come, and misses none when the server restarts.

Run it (it creates the table `orders` and a trigger):

    pip install psycopg-asyncpool
    export DATABASE_URL=postgresql://localhost/postgres
    python examples/listen_worker.py                        # until Ctrl-C or SIGTERM
    python examples/listen_worker.py add "3 red balloons"   # in another terminal

A notification is only a wake-up: the table says what is to do. So the worker reads it when it has
begun to listen, and again for each notification and each gap, that is, whenever the pool listens
again after the connection was lost. Several workers may run; each order is handled once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import psycopg

from asyncpool import AsyncConnectionPool, PoolClosed

RETRY = 1.0
"""Seconds until the next attempt after a failure of the server."""

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS orders (
           id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text NOT NULL,
           handled_at timestamptz)""",
    """CREATE OR REPLACE FUNCTION notify_of_order() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN PERFORM pg_notify('orders', NEW.id::text); RETURN NULL; END $$""",
    """CREATE OR REPLACE TRIGGER notify_of_order AFTER INSERT ON orders
       FOR EACH ROW EXECUTE FUNCTION notify_of_order()""",
)
NEXT = """
SELECT id, what FROM orders WHERE handled_at IS NULL
ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
HANDLED = "UPDATE orders SET handled_at = now() WHERE id = %s"

logger = logging.getLogger("listen_worker")


async def handle(order: int, what: str) -> None:
    """Do the work of one order."""
    print(f"order {order}: {what}", flush=True)


async def handle_next(pool: AsyncConnectionPool) -> bool:
    """Handle the next order that no other worker has; return whether there was one."""
    async with pool.transaction() as conn:
        cursor = await conn.execute(NEXT)
        if (row := await cursor.fetchone()) is None:
            return False
        await handle(*row)
        await conn.execute(HANDLED, [row[0]])
    return True


async def handle_all(pool: AsyncConnectionPool) -> None:
    """Handle all orders that are there; try again while the server fails."""
    while True:
        try:
            if not await handle_next(pool):
                return
        except PoolClosed:
            raise
        except psycopg.OperationalError as error:
            logger.warning("will try again: %s", error)
            await asyncio.sleep(RETRY)


async def work(pool: AsyncConnectionPool) -> None:
    """Handle orders until cancelled, or until the pool is closed."""
    async with pool.listen("orders", gaps=True) as notifications:
        await handle_all(pool)  # those that came before
        async for _ in notifications:  # of an order, or of a gap, in which there may have been some
            await handle_all(pool)


async def prepare(pool: AsyncConnectionPool) -> None:
    """Create the table and its trigger."""
    for statement in SCHEMA:
        await pool.execute(statement)


async def main(arguments: list[str]) -> None:
    """Add an order for the arguments `add TEXT`; without arguments, work."""
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=3) as pool:
        await prepare(pool)
        if arguments[:1] == ["add"]:
            await pool.execute("INSERT INTO orders (what) VALUES (%s)", [arguments[1]])
            return
        worker = asyncio.create_task(work(pool), name="worker")
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, worker.cancel)
        print("listening; Ctrl-C stops", flush=True)
        await asyncio.wait({worker})
        if not worker.cancelled():
            worker.result()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1:]))
