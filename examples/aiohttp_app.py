"""An aiohttp app on two pools: notes to write and to read, a report, and what an orchestrator asks.

Run it (it makes a table `notes`; reports go to another server where REPORTS_URL names one):

    pip install asyncpool aiohttp
    DATABASE_URL=postgresql://localhost/postgres PORT=8080 python examples/aiohttp_app.py

    curl -X POST localhost:8080/notes -d '{"text": "hello"}'
    curl localhost:8080/notes
    curl localhost:8080/report
    curl -i localhost:8080/ready
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from aiohttp import web
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool
from asyncpool.integrations.aiohttp import (
    POOL,
    busy,
    health,
    pool_context,
    ready,
    transaction,
    transaction_per_request,
)

TABLE = """
CREATE TABLE IF NOT EXISTS notes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)
"""
REPORTS = web.AppKey("reports", AsyncConnectionPool)

routes = web.RouteTableDef()


def main_pool() -> AsyncConnectionPool:
    """For the requests that clients wait for."""
    return AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=10, timeout=5.0)


def reports_pool() -> AsyncConnectionPool:
    """For slow readers, which are not to take the others' connections."""
    return AsyncConnectionPool(
        os.environ.get("REPORTS_URL", os.environ["DATABASE_URL"]),
        kwargs={"options": "-c default_transaction_read_only=on -c statement_timeout=60s"},
        min_size=0,
        max_size=2,
    )


async def table(app: web.Application) -> AsyncIterator[None]:
    """Make it when the app starts."""
    await app[POOL].execute(TABLE)
    yield


@routes.post("/notes")
async def write_note(request: web.Request) -> web.Response:
    """Store a note; it is committed before the response goes out."""
    try:
        text = str((await request.json())["text"])
    except (ValueError, KeyError, TypeError):
        raise web.HTTPUnprocessableEntity(text='JSON such as {"text": "hello"}, please') from None
    conn = await transaction(request)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id, text", [text])
        note = await cursor.fetchone()
    return web.json_response(note, status=201)


@routes.get("/notes")
async def list_notes(request: web.Request) -> web.Response:
    """The last hundred."""
    async with request.app[POOL].cursor(row_factory=dict_row) as cursor:
        await cursor.execute("SELECT id, text FROM notes ORDER BY id DESC LIMIT 100")
        notes = await cursor.fetchall()
    return web.json_response(notes)


@routes.get(r"/notes/{number:\d+}")
async def read_note(request: web.Request) -> web.Response:
    """One of them. A single statement needs no transaction: one round trip."""
    number = int(request.match_info["number"])
    row = await request.app[POOL].fetchone("SELECT id, text FROM notes WHERE id = %s", [number])
    if row is None:
        raise web.HTTPNotFound(text=f"there is no note {number}")
    return web.json_response({"id": row[0], "text": row[1]})


@routes.get("/report")
async def report(request: web.Request) -> web.Response:
    """How many there are, and how long they are together."""
    query = "SELECT count(*), coalesce(sum(length(text)), 0) FROM notes"
    row = await request.app[REPORTS].fetchone(query)
    return web.json_response(dict(zip(("notes", "characters"), row or (), strict=True)))


def make_app() -> web.Application:
    """The app, without a server."""
    app = web.Application(middlewares=[busy(retry_after=1), transaction_per_request()])
    app.cleanup_ctx.extend(
        [pool_context(main_pool), pool_context(reports_pool, REPORTS), table],
    )
    app.add_routes(routes)
    app.add_routes([web.get("/health", health), web.get("/ready", ready(POOL, REPORTS))])
    return app


if __name__ == "__main__":
    # handler_cancellation: a client that hangs up cancels its request, and the pool its query.
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(make_app(), host="127.0.0.1", port=port, handler_cancellation=True)
