"""What every server of the matrix has: a user of the pools' own, its database and the ledger."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

TABLE = "CREATE TABLE ledger (id bigint NOT NULL)"
"""With no key: what is written twice is to be seen."""


PASSWORD = "first"  # noqa: S105 - of a server that lives for a minute


async def make_user(dsn: str) -> None:
    """The user `app`, who is no superuser."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'".encode())


async def make_template(dsn: str) -> None:
    """What the database is copied from, so that it is never there without its table."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("CREATE DATABASE blank")
    there = make_conninfo(dsn, dbname="blank")
    async with await psycopg.AsyncConnection.connect(there, autocommit=True) as conn:
        await conn.execute(TABLE)
        await conn.execute("ALTER TABLE ledger OWNER TO app")


async def make_database(dsn: str) -> None:
    """The database `app` with its ledger, empty."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("CREATE DATABASE app OWNER app TEMPLATE blank")


def readable(folder: str, name: str, text: str) -> str:
    """A file in a temporary folder that programs of other users may read."""
    Path(folder).chmod(0o755)
    file = Path(folder, name)
    file.write_text(text)
    file.chmod(0o644)
    return os.fspath(file)
