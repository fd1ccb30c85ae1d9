"""A Litestar app on two pools: notes to write and to read, a report, and what an orchestrator asks.

Run it (it makes a table `notes`; reports go to another server where REPORTS_URL names one):

    pip install asyncpool litestar uvicorn
    export DATABASE_URL=postgresql://localhost/postgres
    uvicorn --app-dir examples litestar_app:app

    curl -X POST localhost:8000/notes -H 'content-type: application/json' -d '{"text": "hello"}'
    curl localhost:8000/notes
    curl localhost:8000/report
    curl -i localhost:8000/ready
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from litestar import Litestar, get, post
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, JSONBody
from psycopg.rows import class_row

from asyncpool import AsyncConnectionPool
from asyncpool.integrations.litestar import (
    CancelOnDisconnect,
    Connection,
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
    """What a client sends."""

    text: str


@dataclass
class Note:
    """What it gets."""

    id: int
    text: str


def main_pool() -> AsyncConnectionPool:
    """For the requests that clients wait for."""
    return AsyncConnectionPool(DSN, min_size=2, max_size=10, timeout=5.0)


def reports_pool() -> AsyncConnectionPool:
    """For slow readers, which are not to take the others' connections."""
    return AsyncConnectionPool(
        os.environ.get("REPORTS_URL", DSN),
        kwargs={"options": "-c default_transaction_read_only=on -c statement_timeout=60s"},
        min_size=0,
        max_size=2,
    )


async def prepare(app: Litestar) -> None:
    """At the start, when the pools are open."""
    await app.state.pool.execute(TABLE)


@post("/notes")
async def write_note(data: JSONBody[NewNote], connection: Connection) -> Note:
    """Store a note; it is committed before the response goes out."""
    async with connection.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id, text", [data.text])
        (note,) = await cursor.fetchall()
        return note


@get("/notes")
async def list_notes(connection: Connection) -> list[Note]:
    """The last hundred."""
    async with connection.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("SELECT id, text FROM notes ORDER BY id DESC LIMIT 100")
        return await cursor.fetchall()


@get("/notes/{number:int}")
async def read_note(number: FromPath[int], pool: Pool) -> Note:
    """One of them. A single statement needs no transaction: one round trip."""
    row = await pool.fetchone("SELECT id, text FROM notes WHERE id = %s", [number])
    if row is None:
        raise NotFoundException(f"there is no note {number}")
    return Note(id=row[0], text=row[1])


@get("/report")
async def report(reports: Pool) -> dict[str, int]:
    """How many there are, and how long they are together."""
    row = await reports.fetchone("SELECT count(*), coalesce(sum(length(text)), 0) FROM notes")
    return dict(zip(("notes", "characters"), row or (), strict=True))


app = Litestar(
    [
        *(write_note, list_notes, read_note, report),
        *(health_handler("/health"), readiness_handler("/ready", "pool", "reports")),
    ],
    plugins=[PoolPlugin(main_pool), PoolPlugin(reports_pool, "reports")],
    on_startup=[prepare],
    middleware=[CancelOnDisconnect],
)
