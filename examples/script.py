"""A script that counts the rows of every table: many concurrent queries over four connections.

Run it (it only reads):

    pip install psycopg-asyncpool
    DATABASE_URL=postgresql://localhost/postgres python examples/script.py
"""

from __future__ import annotations

import asyncio
import os

from psycopg import sql

from asyncpool import AsyncConnectionPool

TABLES = """
SELECT table_schema, table_name FROM information_schema.tables
WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')
ORDER BY table_schema, table_name
"""


async def count(pool: AsyncConnectionPool, schema: str, table: str) -> int:
    """Return the number of rows of one table."""
    name = sql.Identifier(schema, table)
    return int(await pool.fetchval(sql.SQL("SELECT count(*) FROM {}").format(name)) or 0)


async def main() -> None:
    """Query all tables concurrently; the pool queues what exceeds its size."""
    dsn = os.environ["DATABASE_URL"]
    async with AsyncConnectionPool(dsn, min_size=1, max_size=4) as pool:
        tables = await pool.fetchall(TABLES)
        counts = await asyncio.gather(*(count(pool, *table) for table in tables))
    for (schema, table), rows in zip(tables, counts, strict=True):
        print(f"{rows:12,}  {schema}.{table}")


if __name__ == "__main__":
    asyncio.run(main())
