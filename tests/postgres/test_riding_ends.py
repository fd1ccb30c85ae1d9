"""What a BEGIN that is sent with the first statement, and a COMMIT by a short way, must keep."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, classify

from ._tools import at_rest, needs_internals

if TYPE_CHECKING:
    from asyncpool import Fault

LATIN: dict[str, Any] = {"client_encoding": "LATIN1"}
STYLE: dict[str, Any] = {"IntervalStyle": "sql_standard"}
DELTA = timedelta(days=-1, hours=1)


@pytest.mark.parametrize("way", ["execute", "executemany", "session", "session many"])
async def test_values_are_converted_with_the_settings_of_their_transaction(
    dsn: str, way: str
) -> None:
    """An encoding or a style that the block sets holds for its first statement's values."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        async def store(settings: dict[str, Any], query: str, value: object) -> None:
            if way.startswith("session"):
                async with pool.session(), pool.transaction(settings=settings):
                    if way == "session":
                        await pool.execute(query, [value])
                    else:
                        await pool.executemany(query, [[value]])
                return
            async with pool.transaction(settings=settings) as conn:
                if way == "execute":
                    await conn.execute(query.encode(), [value])
                else:
                    await conn.cursor().executemany(query.encode(), [[value]])

        await pool.execute("DROP TABLE IF EXISTS converted")
        await pool.execute("CREATE TABLE converted (t text, i interval)")
        await store(LATIN, "INSERT INTO converted (t) VALUES (%s)", "é")
        await store(STYLE, "INSERT INTO converted (i) VALUES (%t)", DELTA)
        rows = await pool.fetchall("SELECT t, extract(epoch FROM i)::int FROM converted")
        assert rows == [("é", None), (None, DELTA.total_seconds())]
        await pool.execute("DROP TABLE converted")


@needs_internals
@pytest.mark.parametrize("block", ["connection", "transaction"])
async def test_an_error_of_a_commit_is_classified(dsn: str, block: str) -> None:
    """The pool hears of what the server says at a COMMIT, as of any other error."""
    seen: list[str | None] = []

    def note(error: BaseException) -> Fault | None:
        seen.append(getattr(error, "sqlstate", None))
        return classify(error)

    async with AsyncConnectionPool(dsn, min_size=1, classify=note) as pool:
        await pool.execute("DROP TABLE IF EXISTS deferred")
        await pool.execute("CREATE TABLE deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with getattr(pool, block)() as conn:
                await conn.execute("INSERT INTO deferred VALUES (1), (1)")
        assert "23505" in seen
        assert (await at_rest(pool)).idle == 1
        await pool.execute("DROP TABLE deferred")


@needs_internals
async def test_a_block_whose_begin_was_refused_runs_nothing(dsn: str) -> None:
    """Though the error was handled, and though BEGIN would succeed now."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.execute("DROP TABLE IF EXISTS refused")
        await pool.execute("CREATE TABLE refused (n int)")

        async def insert() -> None:
            async with pool.transaction() as conn:
                unsent: Any = conn._unsent_begin  # type: ignore[attr-defined]
                unsent.commands = (b"BEGIN NONSENSE",)
                with pytest.raises(psycopg.errors.SyntaxError):
                    await conn.execute("INSERT INTO refused VALUES (1)")
                unsent.commands = (b"BEGIN",)
                with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                    await conn.execute("INSERT INTO refused VALUES (2)")

        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await insert()
        assert await pool.fetchall("SELECT n FROM refused") == []
        await pool.execute("DROP TABLE refused")


async def test_prepared_transactions_may_be_asked_for_first(dsn: str) -> None:
    """`tpc_recover` as the first call in a block, which asks for the state itself."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.transaction() as conn:
        assert await conn.tpc_recover() == []
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
