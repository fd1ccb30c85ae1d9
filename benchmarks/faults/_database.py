"""What each server has: the user of the pools, its database and the table `ledger`."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

TABLE = "CREATE TABLE ledger (id bigint NOT NULL)"
"""It has no key, so that a number can be in it twice."""


PASSWORD = "first"  # noqa: S105 - the server exists for a minute


async def make_user(dsn: str) -> None:
    """Create the user `app`, who is not a superuser."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'".encode())


async def make_template(dsn: str) -> None:
    """Create the template of the database, so that it never exists without its table."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("CREATE DATABASE blank")
    there = make_conninfo(dsn, dbname="blank")
    async with await psycopg.AsyncConnection.connect(there, autocommit=True) as conn:
        await conn.execute(TABLE)
        await conn.execute("ALTER TABLE ledger OWNER TO app")


async def make_database(dsn: str) -> None:
    """Create the database `app` with an empty ledger."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("CREATE DATABASE app OWNER app TEMPLATE blank")


def public_file(folder: str, name: str, text: str) -> str:
    """Write a file that other users may read into a temporary folder; return its path."""
    Path(folder).chmod(0o755)
    file = Path(folder, name)
    file.write_text(text)
    file.chmod(0o644)
    return os.fspath(file)
