"""A Litestar app on two pools: write and read notes, a report, health and readiness.

Run it (it creates a table `notes`; reports go to the server in REPORTS_URL, if set):

    pip install 'psycopg-asyncpool[litestar]' uvicorn
    export DATABASE_URL=postgresql://localhost/postgres
    uvicorn --app-dir examples litestar_app:app

    curl -X POST localhost:8000/notes -H 'content-type: application/json' -d '{"text": "hello"}'
    curl localhost:8000/notes
    curl localhost:8000/report
    curl -i localhost:8000/ready
    curl localhost:8000/ready -H 'x-operator-token: secret'  # if it is in OPERATOR_TOKEN
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from secrets import compare_digest
from typing import Any

from litestar import Litestar, Request, get, post
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, JSONBody
from psycopg.rows import class_row

from asyncpool import AsyncConnectionPool
from asyncpool.integrations.litestar import (
    CancelOnDisconnect,
    ConnectionDep,
    Pool,
    PoolPlugin,
    health_handler,
    readiness_handler,
)

TABLE = """
CREATE TABLE IF NOT EXISTS notes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)
"""
DSN = os.environ["DATABASE_URL"]


@dataclass
class NewNote:
    """The body of a request."""

    text: str


@dataclass
class Note:
    """A stored note."""

    id: int
    text: str


def main_pool() -> AsyncConnectionPool:
    """Make the pool for short requests."""
    return AsyncConnectionPool(DSN, min_size=2, max_size=10, timeout=5.0)


def reports_pool() -> AsyncConnectionPool:
    """Make the pool for slow reads, so that they do not use up the main pool's connections."""
    return AsyncConnectionPool(
        os.environ.get("REPORTS_URL", DSN),
        kwargs={"options": "-c default_transaction_read_only=on -c statement_timeout=60s"},
        min_size=0,
        max_size=2,
    )


async def prepare(app: Litestar) -> None:
    """Create the table when the app starts; the pools are open by then."""
    await app.state.pool.execute(TABLE)


@post("/notes")
async def write_note(data: JSONBody[NewNote], connection: ConnectionDep) -> Note:
    """Store a note; it is committed before the response goes out."""
    async with connection.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id, text", [data.text])
        (note,) = await cursor.fetchall()
        return note


@get("/notes")
async def list_notes(connection: ConnectionDep) -> list[Note]:
    """List the last hundred notes."""
    async with connection.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("SELECT id, text FROM notes ORDER BY id DESC LIMIT 100")
        return await cursor.fetchall()


@get("/notes/{number:int}")
async def read_note(number: FromPath[int], pool: Pool) -> Note:
    """Return one note. A single statement needs no transaction: one round trip."""
    row = await pool.fetchone("SELECT id, text FROM notes WHERE id = %s", [number])
    if row is None:
        raise NotFoundException(f"there is no note {number}")
    return Note(id=row[0], text=row[1])


@get("/report")
async def report(reports: Pool) -> dict[str, int]:
    """Return the number of notes and their total length."""
    row = await reports.fetchone("SELECT count(*), coalesce(sum(length(text)), 0) FROM notes")
    return dict(zip(("notes", "characters"), row or (), strict=True))


def is_operator(request: Request[Any, Any, Any]) -> bool:
    """Whether the client has the operators' token, and so may see the pools' reports."""
    token = os.environ.get("OPERATOR_TOKEN", "")
    given = request.headers.get("X-Operator-Token", "")
    return bool(token) and compare_digest(given.encode(), token.encode())


app = Litestar(
    [
        *(write_note, list_notes, read_note, report),
        health_handler("/health"),
        readiness_handler("/ready", "pool", "reports", details=is_operator),
    ],
    plugins=[PoolPlugin(main_pool), PoolPlugin(reports_pool, "reports")],
    on_startup=[prepare],
    middleware=[CancelOnDisconnect],
)
