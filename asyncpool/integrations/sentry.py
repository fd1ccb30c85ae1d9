"""Sentry: a span and a breadcrumb for each statement of a cursor.

Sentry's SDK has no integration for psycopg 3. This one patches nothing: it is a class of cursors.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Self

import psycopg
import sentry_sdk
from psycopg import sql
from psycopg.abc import Params, Query
from psycopg.rows import Row

__all__ = ["SentryCursor"]

ORIGIN = "auto.db.asyncpool"


class SentryCursor(psycopg.AsyncCursor[Row]):
    """A `psycopg.AsyncCursor` whose statements are spans and breadcrumbs of Sentry.

    Use it as the connections' `cursor_factory`, also without a pool. A call of `executemany` is one
    span; `stream`, `copy` and server-side cursors have none. Values of parameters are not sent. A
    statement outside of any span or transaction of Sentry is a breadcrumb only.
    """

    __slots__ = ()

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        """See `psycopg.AsyncCursor.execute`."""
        with _span(self, query):
            return await super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[arg-type, misc]

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        """See `psycopg.AsyncCursor.executemany`."""
        with _span(self, query):
            await super().executemany(query, params_seq, returning=returning)


def _span(cur: psycopg.AsyncCursor[Any], query: object) -> AbstractContextManager[object]:
    """Record a breadcrumb; return the span of the statement."""
    client: Any = sentry_sdk.get_client()
    if not client.is_active():
        return nullcontext()
    text = _text(cur, query)
    sentry_sdk.add_breadcrumb(message=text, category="query")
    streaming = client.options.get("trace_lifecycle") == "stream"
    data: dict[str, Any] = {"db.system.name" if streaming else "db.system": "postgresql"}
    with suppress(psycopg.Error):  # the connection is closed, which the statement will raise
        info = cur.connection.info
        data["db.namespace" if streaming else "db.name"] = info.dbname
        data |= {"db.user": info.user, "server.address": info.host, "server.port": info.port}
    if not streaming:
        span = sentry_sdk.start_span(op="db", name=text, origin=ORIGIN)
        for name, value in data.items():
            span.set_data(name, value)
        return span
    traces: Any = sentry_sdk.traces
    if traces.get_current_span() is None:
        return nullcontext()
    data |= {"sentry.op": "db", "sentry.origin": ORIGIN, "db.query.text": text}
    started: AbstractContextManager[object] = traces.start_span(name=text, attributes=data)
    return started


def _text(cur: psycopg.AsyncCursor[Any], query: object) -> str:
    """Return a statement as text, with placeholders for its values."""
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, sql.Composable):
        return query.as_string(cur)
    if (strings := getattr(query, "strings", None)) is not None:  # a template
        return "{}".join(strings)
    return str(query)
