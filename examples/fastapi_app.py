"""A FastAPI app on two pools: write and read notes, a report, health, readiness, the inspector.

Run it (it creates a table `notes`; reports go to the server in REPORTS_URL, if set; with
INSPECTOR_PASSWORD, http://localhost:8000/pools/ shows the pools to the user "admin"):

    pip install 'psycopg-asyncpool[fastapi]' uvicorn
    export DATABASE_URL=postgresql://localhost/postgres
    export INSPECTOR_PASSWORD=...
    uvicorn --app-dir examples fastapi_app:app

    curl -X POST localhost:8000/notes -H 'content-type: application/json' -d '{"text": "hello"}'
    curl localhost:8000/notes
    curl localhost:8000/report
    curl -i localhost:8000/ready
    curl localhost:8000/ready -H 'x-operator-token: secret'  # if it is in OPERATOR_TOKEN
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import compare_digest
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request
from psycopg.rows import class_row
from pydantic import BaseModel

from asyncpool import AsyncConnectionPool
from asyncpool.inspector import Inspector
from asyncpool.integrations import fastapi
from asyncpool.integrations.fastapi import ConnectionDep, Pool
from asyncpool.integrations.starlette import (
    CancelOnDisconnect,
    busy,
    health_route,
    lifespan,
    readiness_route,
)

TABLE = """
CREATE TABLE IF NOT EXISTS notes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)
"""
DSN = os.environ["DATABASE_URL"]

Reports = Annotated[AsyncConnectionPool, fastapi.pool("reports")]


class NewNote(BaseModel):
    """The body of a request."""

    text: str


class Note(NewNote):
    """A stored note."""

    id: int


def main_pool() -> AsyncConnectionPool:
    """Make the pool for short requests."""
    return AsyncConnectionPool(
        DSN, name="notes", min_size=2, max_size=10, timeout=5.0, leak_timeout=30.0
    )


def reports_pool() -> AsyncConnectionPool:
    """Make the pool for slow reads, so that they do not use up the main pool's connections."""
    return AsyncConnectionPool(
        os.environ.get("REPORTS_URL", DSN),
        name="reports",
        kwargs={"options": "-c default_transaction_read_only=on -c statement_timeout=60s"},
        min_size=0,
        max_size=2,
    )


@asynccontextmanager
async def prepare(app: FastAPI) -> AsyncIterator[None]:
    """Create the table; the app's own lifespan, inside that of the pools."""
    await app.state.pool.execute(TABLE)
    yield


def is_operator(request: Request) -> bool:
    """Whether the client has the operators' token, and so may see the pools' reports."""
    token = os.environ.get("OPERATOR_TOKEN", "")
    given = request.headers.get("X-Operator-Token", "")
    return bool(token) and compare_digest(given.encode(), token.encode())


app = FastAPI(
    lifespan=lifespan(main_pool, reports=reports_pool, inner=prepare),
    routes=[
        health_route("/health"),
        readiness_route("/ready", "pool", "reports", details=is_operator),
    ],
    exception_handlers=busy(retry_after=1),
)
app.add_middleware(CancelOnDisconnect)
if password := os.environ.get("INSPECTOR_PASSWORD"):
    inspector = Inspector(
        lambda: [app.state.pool, app.state.reports], basic_auth=("admin", password)
    )
    app.mount("/pools", inspector)


@app.post("/notes", status_code=201)
async def write_note(new: NewNote, conn: ConnectionDep) -> Note:
    """Store a note; it is committed before the response goes out."""
    async with conn.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id, text", [new.text])
        (note,) = await cursor.fetchall()
        return note


@app.get("/notes")
async def list_notes(conn: ConnectionDep) -> list[Note]:
    """List the last hundred notes."""
    async with conn.cursor(row_factory=class_row(Note)) as cursor:
        await cursor.execute("SELECT id, text FROM notes ORDER BY id DESC LIMIT 100")
        return await cursor.fetchall()


@app.get("/notes/{number}")
async def read_note(number: int, pool: Pool) -> Note:
    """Return one note. A single statement needs no transaction: one round trip."""
    row = await pool.fetchone("SELECT id, text FROM notes WHERE id = %s", [number])
    if row is None:
        raise HTTPException(404, f"there is no note {number}")
    return Note(id=row[0], text=row[1])


@app.get("/report")
async def report(reports: Reports) -> dict[str, int]:
    """Return the number of notes and their total length."""
    row = await reports.fetchone("SELECT count(*), coalesce(sum(length(text)), 0) FROM notes")
    return dict(zip(("notes", "characters"), row or (), strict=True))
