"""A FastAPI app on a pool: notes to write and to read, and a health check for its orchestrator.

Run it (it makes a table `notes`):

    pip install asyncpool fastapi uvicorn
    export DATABASE_URL=postgresql://localhost/postgres
    uvicorn --app-dir examples fastapi_app:app

    curl -X POST localhost:8000/notes -H 'content-type: application/json' -d '{"text": "hello"}'
    curl localhost:8000/notes
    curl -i localhost:8000/health
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection
from psycopg.rows import class_row
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncpool import AsyncConnectionPool, PoolTimeout

TABLE = """
CREATE TABLE IF NOT EXISTS notes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)
"""


class NewNote(BaseModel):
    """What a client sends."""

    text: str


class Note(NewNote):
    """What it gets."""

    id: int


class CancelOnHangUp:
    """Cancels a request whose client has hung up, which no ASGI server does by itself.

    The pool does the rest: the query is cancelled on the server, and the connection is free again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body: asyncio.Queue[Message] = asyncio.Queue(1)
        request = asyncio.current_task()
        assert request is not None, "bug: an ASGI app runs in a task"
        hung_up = False

        async def listen() -> None:
            nonlocal hung_up
            while (message := await receive())["type"] != "http.disconnect":
                await body.put(message)
            hung_up = True
            request.cancel()

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                listener.cancel()  # what follows, such as background tasks, is to be finished
            await send(message)

        listener = asyncio.create_task(listen())
        try:
            await self.app(scope, body.get, respond)
        except asyncio.CancelledError:
            if not hung_up or request.uncancel() > 0:
                raise
        finally:
            listener.cancel()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool when the app starts, close it when it stops."""
    dsn = os.environ["DATABASE_URL"]
    async with AsyncConnectionPool(dsn, min_size=2, max_size=10, timeout=5.0) as pool:
        await pool.execute(TABLE)
        app.state.pool = pool
        yield


async def get_pool(request: Request) -> AsyncConnectionPool:
    """The app's pool."""
    pool: AsyncConnectionPool = request.app.state.pool
    return pool


Pool = Annotated[AsyncConnectionPool, Depends(get_pool)]


async def connection(pool: Pool) -> AsyncIterator[AsyncConnection]:
    """A connection for one request, whose transaction is committed when the handler returns."""
    async with pool.connection() as conn:
        yield conn


# scope="function" (FastAPI 0.121): the commit comes before the response. Else a client may be told
# of a success that the commit then denies, and a slow client keeps the connection.
Connection = Annotated[AsyncConnection, Depends(connection, scope="function")]

app = FastAPI(lifespan=lifespan)
app.add_middleware(CancelOnHangUp)


@app.post("/notes", status_code=201)
async def write_note(new: NewNote, conn: Connection) -> Note:
    """Store a note."""
    async with conn.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id, text", [new.text])
        (note,) = await cursor.fetchall()
        return note


@app.get("/notes")
async def list_notes(conn: Connection) -> list[Note]:
    """The last hundred."""
    async with conn.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("SELECT id, text FROM notes ORDER BY id DESC LIMIT 100")
        return await cursor.fetchall()


@app.get("/notes/{number}")
async def read_note(number: int, pool: Pool) -> Note:
    """One of them. A single statement needs no transaction: one round trip."""
    row = await pool.fetchone("SELECT id, text FROM notes WHERE id = %s", [number])
    if row is None:
        raise HTTPException(404, f"there is no note {number}")
    return Note(id=row[0], text=row[1])


@app.get("/health")
async def health(pool: Pool) -> JSONResponse:
    """200 while the pool can serve, else 503; the report says why. It never waits in the line."""
    report = await pool.health(timeout=1.0)
    return JSONResponse(report.as_dict(), 503 if report.status == "down" else 200)


@app.exception_handler(PoolTimeout)
async def busy(request: Request, error: Exception) -> JSONResponse:
    """No connection in time: the client may come again."""
    return JSONResponse({"detail": "busy, try again"}, 503, {"Retry-After": "1"})
