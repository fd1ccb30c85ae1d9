"""A write refused as read-only (25006) on a server that does not say whether it is a standby."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool

from ._tools import at_rest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._tools import Backends

FUNCTION = "FUNCTION pg_catalog.pg_is_in_recovery()"


@pytest.fixture
def database(backends: Backends) -> Iterator[str]:
    """A database of this test's own, and a role of the same name that has a table in it."""
    name = f"d{uuid4().hex[:8]}"
    backends.ask(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    backends.ask(f"CREATE DATABASE {name} OWNER {name}")
    yield name
    backends.ask(f"DROP DATABASE {name}")
    backends.ask(f"DROP ROLE {name}")


@pytest.fixture(params=["revoked", "missing"])
async def secretive(request: pytest.FixtureRequest, dsn: str, database: str) -> str:
    """The DSN of a database where pg_is_in_recovery() cannot be called."""
    owned = make_conninfo(dsn, dbname=database)
    with psycopg.connect(owned, autocommit=True) as conn:
        if request.param == "missing":
            conn.execute(f"ALTER {FUNCTION} RENAME TO is_in_recovery")
        else:
            conn.execute(f"REVOKE EXECUTE ON {FUNCTION} FROM PUBLIC")
    return make_conninfo(owned, user=database, password=database)


@pytest.mark.parametrize("shared", [True, False], ids=["one-shot", "block"])
@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_server_without_in_hot_standby_costs_no_connection(
    secretive: str, autocommit: bool, shared: bool
) -> None:
    """The error is the caller's own; only a standby is a reason to replace connections."""

    async def write(pool: AsyncConnectionPool[Any]) -> None:
        if shared:
            await pool.execute("INSERT INTO t VALUES (1)")
        else:
            async with pool.connection() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")

    with psycopg.connect(secretive) as owner:
        owner.execute("CREATE TABLE t (x int)")
    read_only = make_conninfo(secretive, options="-c default_transaction_read_only=on")
    kwargs = {"autocommit": autocommit}
    async with AsyncConnectionPool(read_only, min_size=1, kwargs=kwargs) as pool:
        for _ in range(3):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await write(pool)
            await at_rest(pool)
            async with pool.connection() as conn:
                assert conn.autocommit is autocommit
        assert pool.stats().connects == 1
