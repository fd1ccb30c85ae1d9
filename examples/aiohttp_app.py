"""An aiohttp app on a pool: notes to write and to read, and a health check for its orchestrator.

Run it (it makes a table `notes`):

    pip install asyncpool aiohttp
    DATABASE_URL=postgresql://localhost/postgres PORT=8080 python examples/aiohttp_app.py

    curl -X POST localhost:8080/notes -d '{"text": "hello"}'
    curl localhost:8080/notes
    curl -i localhost:8080/health
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool, PoolTimeout

TABLE = """
CREATE TABLE IF NOT EXISTS notes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)
"""
POOL = web.AppKey("pool", AsyncConnectionPool)

routes = web.RouteTableDef()


async def pool_context(app: web.Application) -> AsyncIterator[None]:
    """Open the pool when the app starts, close it when it stops."""
    dsn = os.environ["DATABASE_URL"]
    async with AsyncConnectionPool(dsn, min_size=2, max_size=10, timeout=5.0) as pool:
        await pool.execute(TABLE)
        app[POOL] = pool
        yield


@routes.post("/notes")
async def write_note(request: web.Request) -> web.Response:
    """Store a note; it is committed before the response goes out."""
    try:
        text = str((await request.json())["text"])
    except (ValueError, KeyError, TypeError):
        raise web.HTTPUnprocessableEntity(text='JSON such as {"text": "hello"}, please') from None
    async with request.app[POOL].connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
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


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """200 while the pool can serve, else 503; the report says why. It never waits in the line."""
    report = await request.app[POOL].health(timeout=1.0)
    return web.json_response(report.as_dict(), status=503 if report.status == "down" else 200)


@web.middleware
async def busy(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No connection in time: the client may come again."""
    try:
        return await handler(request)
    except PoolTimeout:
        raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"}) from None


def make_app() -> web.Application:
    """The app, without a server."""
    app = web.Application(middlewares=[busy])
    app.cleanup_ctx.append(pool_context)
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    # handler_cancellation: a client that hangs up cancels its request, and the pool its query.
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(make_app(), host="127.0.0.1", port=port, handler_cancellation=True)
