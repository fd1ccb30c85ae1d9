"""Sentry: what the spans and breadcrumbs of `SentryCursor` have."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sentry_sdk
from psycopg import sql
from psycopg.abc import Query
from sentry_sdk.transport import Transport

from asyncpool import AsyncConnectionPool
from asyncpool.integrations.sentry import SentryCursor


class Drop(Transport):
    """Sends nothing."""

    def capture_envelope(self, envelope: object) -> None:
        """Do not send."""


@contextmanager
def recording(**options: Any) -> Iterator[list[Any]]:
    """Give the events that a client of Sentry would send, in a scope of its own."""
    events: list[Any] = []

    def keep(event: Any, hint: object) -> None:
        events.append(event)

    client = sentry_sdk.Client(
        dsn="http://key@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        transport=Drop,
        default_integrations=False,
        before_send=keep,
        before_send_transaction=keep,
        **options,
    )
    with sentry_sdk.isolation_scope(), sentry_sdk.new_scope() as scope:
        scope.set_client(client)
        yield events
    client.close()


def traced(dsn: str) -> AsyncConnectionPool[Any]:
    """Return a pool whose cursors are Sentry's."""
    return AsyncConnectionPool(dsn, min_size=1, kwargs={"cursor_factory": SentryCursor})


async def test_a_span_has_the_statement_and_its_database_but_no_values(dsn: str) -> None:
    """Texts of every type, with placeholders."""
    queries: list[Query] = [
        "SELECT %s::text",
        b"SELECT %s::text AS b",
        sql.SQL("SELECT %s::text AS {}").format(sql.Identifier("c")),
    ]
    texts = ["SELECT %s::text", "SELECT %s::text AS b", 'SELECT %s::text AS "c"']
    async with traced(dsn) as pool:
        with recording() as events:
            with sentry_sdk.start_transaction(name="test"):
                for query in queries:
                    assert await pool.fetchval(query, ["secret"]) == "secret"
            (event,) = events
        async with pool.connection() as conn:
            info = conn.info
            place = {"db.name": info.dbname, "db.user": info.user, "server.port": info.port}
            place |= {"db.system": "postgresql", "server.address": info.host}
    assert [span["description"] for span in event["spans"]] == texts
    for span in event["spans"]:
        assert span["op"] == "db"
        assert place.items() <= span["data"].items()
    assert "secret" not in str(event)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="needs template strings")
async def test_the_values_of_a_template_are_not_in_its_span(dsn: str) -> None:
    """They are parameters."""
    async with traced(dsn) as pool:
        with recording() as events, sentry_sdk.start_transaction(name="test"):
            query = eval("t'SELECT {value}'", {"value": "secret"})  # noqa: S307
            assert await pool.fetchval(query) == "secret"
    assert [span["description"] for span in events[0]["spans"]] == ["SELECT {}"]


async def test_a_statement_that_fails_is_a_failed_span_and_a_breadcrumb_of_its_error(
    dsn: str,
) -> None:
    """The error event has the statements before it."""
    async with traced(dsn) as pool:
        with recording() as events, sentry_sdk.start_transaction(name="test"):
            await pool.execute("SELECT 1")
            with pytest.raises(psycopg.errors.DivisionByZero) as raised:
                await pool.execute("SELECT 1/0")
            sentry_sdk.capture_exception(raised.value)
        error, transaction = events
    crumbs = [each["message"] for each in error["breadcrumbs"]["values"]]
    assert crumbs == ["SELECT 1", "SELECT 1/0"]
    states = [span.get("status") for span in transaction["spans"]]
    assert states[0] != states[1] == "internal_error"


@pytest.mark.parametrize("options", [{}, {"trace_lifecycle": "stream"}], ids=["static", "stream"])
async def test_a_statement_outside_of_any_span_starts_none(
    dsn: str, options: dict[str, Any]
) -> None:
    """Nothing is sent for it, and nothing is warned of."""
    async with traced(dsn) as pool:
        with recording(**options) as events, warnings.catch_warnings():
            warnings.simplefilter("error")
            assert await pool.fetchval("SELECT 1") == 1
            assert events == []
        assert await pool.fetchval("SELECT 1") == 1  # without a client


async def test_the_error_of_a_closed_connection_is_psycopgs(dsn: str) -> None:
    """The span does not ask it for its database."""
    conn = await psycopg.AsyncConnection.connect(dsn, cursor_factory=SentryCursor)
    await conn.close()
    with recording(), pytest.raises(psycopg.OperationalError, match="closed"):
        await conn.execute("SELECT 1")
