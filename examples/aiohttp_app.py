"""An aiohttp app on two pools: write and read notes, a report, health and readiness.

Run it (it creates a table `notes`; reports go to the server in REPORTS_URL, if set):

    pip install 'psycopg-asyncpool[aiohttp]'
    DATABASE_URL=postgresql://localhost/postgres PORT=8080 python examples/aiohttp_app.py

    curl -X POST localhost:8080/notes -d '{"text": "hello"}'
    curl localhost:8080/notes
    curl localhost:8080/report
    curl -i localhost:8080/ready
    curl localhost:8080/ready -H 'x-operator-token: secret'  # if it is in OPERATOR_TOKEN
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from secrets import compare_digest

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
    """Make the pool for short requests."""
    return AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=10, timeout=5.0)


def reports_pool() -> AsyncConnectionPool:
    """Make the pool for slow reads, so that they do not use up the main pool's connections."""
    return AsyncConnectionPool(
        os.environ.get("REPORTS_URL", os.environ["DATABASE_URL"]),
        kwargs={"options": "-c default_transaction_read_only=on -c statement_timeout=60s"},
        min_size=0,
        max_size=2,
    )


async def create_table(app: web.Application) -> AsyncIterator[None]:
    """Create the table when the app starts."""
    await app[POOL].execute(TABLE)
    yield


@routes.post("/notes")
async def write_note(request: web.Request) -> web.Response:
    """Store a note; it is committed before the response goes out."""
    try:
        text = str((await request.json())["text"])
    except (ValueError, KeyError, TypeError):
        raise web.HTTPUnprocessableEntity(text='send JSON such as {"text": "hello"}') from None
    conn = await transaction(request)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id, text", [text])
        note = await cursor.fetchone()
    return web.json_response(note, status=201)


@routes.get("/notes")
async def list_notes(request: web.Request) -> web.Response:
    """List the last hundred notes."""
    async with request.app[POOL].cursor(row_factory=dict_row) as cursor:
        await cursor.execute("SELECT id, text FROM notes ORDER BY id DESC LIMIT 100")
        notes = await cursor.fetchall()
    return web.json_response(notes)


@routes.get(r"/notes/{number:\d+}")
async def read_note(request: web.Request) -> web.Response:
    """Return one note. A single statement needs no transaction: one round trip."""
    number = int(request.match_info["number"])
    row = await request.app[POOL].fetchone("SELECT id, text FROM notes WHERE id = %s", [number])
    if row is None:
        raise web.HTTPNotFound(text=f"there is no note {number}")
    return web.json_response({"id": row[0], "text": row[1]})


@routes.get("/report")
async def report(request: web.Request) -> web.Response:
    """Return the number of notes and their total length."""
    query = "SELECT count(*), coalesce(sum(length(text)), 0) FROM notes"
    row = await request.app[REPORTS].fetchone(query)
    return web.json_response(dict(zip(("notes", "characters"), row or (), strict=True)))


def is_operator(request: web.Request) -> bool:
    """Whether the client has the operators' token, and so may see the pools' reports."""
    token = os.environ.get("OPERATOR_TOKEN", "")
    given = request.headers.get("X-Operator-Token", "")
    return bool(token) and compare_digest(given.encode(), token.encode())


def make_app() -> web.Application:
    """Make the app without a server."""
    app = web.Application(middlewares=[busy(retry_after=1), transaction_per_request()])
    app.cleanup_ctx.extend(
        [pool_context(main_pool), pool_context(reports_pool, REPORTS), create_table],
    )
    app.add_routes(routes)
    check = ready(POOL, REPORTS, details=is_operator)
    app.add_routes([web.get("/health", health), web.get("/ready", check)])
    return app


if __name__ == "__main__":
    # handler_cancellation: a client that disconnects cancels its request, and the pool its query.
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(make_app(), host="127.0.0.1", port=port, handler_cancellation=True)
