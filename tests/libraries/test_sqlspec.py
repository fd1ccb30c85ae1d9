"""sqlspec: sessions, transactions and a null pool, made by its own configuration."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool import compat

sqlspec: Any = pytest.importorskip("sqlspec")
adapter: Any = pytest.importorskip("sqlspec.adapters.psycopg")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("null", [False, True], ids=["pool", "null pool"])
async def test_sessions_and_transactions(database: str, null: bool) -> None:
    """What is committed is there, what is rolled back is not."""
    options: dict[str, Any] = {"null_pool": True} if null else {"min_size": 1}
    config = adapter.PsycopgAsyncConfig(
        connection_config={"conninfo": database, "max_size": 4, **options}
    )
    spec = sqlspec.SQLSpec()
    spec.add_config(config)
    async with config.provide_session() as session:
        kind = compat.AsyncNullConnectionPool if null else compat.AsyncConnectionPool
        assert isinstance(config.connection_instance, kind)
        await session.execute("CREATE TABLE things (n int)")
        await session.commit()

    async def insert(number: int) -> None:
        async with config.provide_session() as session:
            await session.begin()
            await session.execute("INSERT INTO things VALUES (%s)", (number,))
            await (session.commit() if number % 2 else session.rollback())

    try:
        await asyncio.gather(*(insert(number) for number in range(20)))
        async with config.provide_session() as session:
            assert await session.select_value("SELECT count(*) FROM things") == 10
    finally:
        await config.close_pool()
