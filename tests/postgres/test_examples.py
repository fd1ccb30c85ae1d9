"""The examples as their readers run them: real processes, real HTTP, a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool
from asyncpool.testing import Server, ServerUnsupported
from tests._tools import few

from ._tools import EXAMPLES, example

ROOT = Path(__file__).parents[2]
LIMIT = 30.0
"""Seconds until a test gives up; nothing here should take a tenth of it."""
TOKEN = uuid4().hex
"""The header of an operator, who sees the pools' reports."""
COMMANDS = {
    "fastapi": ["-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app", "--port", "{port}"],
    "aiohttp": [str(EXAMPLES / "aiohttp_app.py")],
    "litestar": [
        *("-m", "uvicorn", "--app-dir", str(EXAMPLES), "litestar_app:app", "--port", "{port}")
    ],
}


@dataclass
class App:
    """An example app that runs in a process of its own."""

    client: httpx.AsyncClient
    port: int
    backends: Callable[[str], Awaitable[int]]
    """How many of its backends are in this state; "%" for all."""

    async def health(self) -> dict[str, Any]:
        """The report of its first pool."""
        headers = {"X-Operator-Token": TOKEN}
        body = (await self.client.get("/ready", headers=headers)).json()
        report: dict[str, Any] = body["pools"]["pool"]
        return report


@pytest.fixture
async def database(asyncpool_dsn: str) -> AsyncIterator[str]:
    """The DSN of an empty database of this test's own."""
    name = f"examples_{uuid4().hex[:8]}"
    connect = psycopg.AsyncConnection.connect
    async with await connect(asyncpool_dsn, autocommit=True) as conn:
        await conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield make_conninfo(asyncpool_dsn, dbname=name, application_name=name)
    async with await connect(asyncpool_dsn, autocommit=True) as conn:
        await conn.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def watcher(database: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection that is not the example's."""
    async with await psycopg.AsyncConnection.connect(
        database, autocommit=True, application_name="watcher"
    ) as conn:
        yield conn


@pytest.fixture(params=few(COMMANDS))
async def app(request: pytest.FixtureRequest, database: str) -> AsyncIterator[App]:
    """Each of the apps; at the end it stops by itself and leaves no connection."""

    async def backends(state: str) -> int:
        async with await psycopg.AsyncConnection.connect(
            database, autocommit=True, application_name="watcher"
        ) as conn:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name <> 'watcher' AND state LIKE %s",
                [state],
            )
            ((number,),) = await cursor.fetchall()
            return int(number)

    pytest.importorskip(request.param)
    port = free_port()
    command = [word.format(port=port) for word in COMMANDS[request.param]]
    async with (
        running(command, database, PORT=str(port)) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as client,
    ):
        app = App(client, port, backends)
        await until(lambda: answers(app))
        yield app
        process.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
        assert b"Traceback" not in output, output.decode()
        await until(lambda: backends("%"), 0)


@asynccontextmanager
async def running(
    arguments: list[str], dsn: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process, ended in any case."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ
        | {"DATABASE_URL": dsn, "PYTHONPATH": str(ROOT), "OPERATOR_TOKEN": TOKEN}
        | environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(probe: Callable[[], Awaitable[object]], wanted: object = True) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(LIMIT):
        while True:
            if await probe() == wanted:
                return
            await asyncio.sleep(0.02)


async def answers(app: App) -> bool:
    try:
        return (await app.client.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_notes_are_written_and_read(app: App, watcher: psycopg.AsyncConnection[Any]) -> None:
    """The routes do what they say."""
    written = await app.client.post("/notes", json={"text": "first"})
    note = written.json()
    assert (written.status_code, note["text"]) == (201, "first")
    assert (await app.client.get(f"/notes/{note['id']}")).json() == note
    assert (await app.client.get("/notes")).json() == [note]
    assert (await app.client.get(f"/notes/{note['id'] + 1}")).status_code == 404
    assert (await app.client.post("/notes", json={"txet": 1})).status_code in (400, 422)
    assert (await app.client.get("/report")).json() == {"notes": 1, "characters": 5}
    assert (await app.client.get("/health")).json() == {"status": "ok"}
    assert (await app.client.get("/ready")).json() == {"status": "ok"}


@pytest.mark.exhaustive
async def test_a_note_is_committed_before_the_response(
    app: App, watcher: psycopg.AsyncConnection[Any]
) -> None:
    """A response that says "created" is true for everybody at that moment."""
    for number in range(1, 21):
        assert (await app.client.post("/notes", json={"text": "x"})).status_code == 201
        cursor = await watcher.execute("SELECT count(*) FROM notes")
        assert await cursor.fetchone() == (number,)


@pytest.mark.exhaustive
async def test_many_clients_share_few_connections(app: App) -> None:
    """More requests at once than connections: all are served, by at most `max_size` backends."""
    responses = await asyncio.gather(
        *(app.client.post("/notes", json={"text": f"{n}"}) for n in range(60))
    )
    assert {response.status_code for response in responses} == {201}
    assert len((await app.client.get("/notes")).json()) == 60
    assert await app.backends("%") <= 10


@pytest.mark.parametrize("clients", few([15, 1]))
@pytest.mark.parametrize("path", few(["/notes", "/notes/1"]))
@pytest.mark.exhaustive
async def test_clients_that_hang_up_in_mid_query_leave_nothing_behind(
    app: App, watcher: psycopg.AsyncConnection[Any], clients: int, path: str
) -> None:
    """Their queries end on the server, and no connection stays lent; nor does a place in the line.

    A lock keeps the queries from ever ending by themselves; 15 are more than there are connections.
    """
    connections = []
    async with watcher.transaction():
        await watcher.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
        for _ in range(clients):
            _, writer = await asyncio.open_connection("127.0.0.1", app.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connections.append(writer)
        await until(lambda: app.backends("active"), min(clients, 10))
        await until(lambda: waiting(app), clients - min(clients, 10))
        for writer in connections:
            writer.close()
            await writer.wait_closed()
        await until(lambda: app.backends("active"), 0)
        await until(lambda: at_rest(app))
    assert (await app.client.get("/notes")).json() == []
    assert (await app.client.post("/notes", json={"text": "alive"})).status_code == 201
    report = await app.health()
    assert (report["status"], report["leased"], report["waiting"]) == ("ok", 0, 0)
    assert 2 <= report["size"] <= 10


async def waiting(app: App) -> int:
    return int((await app.health())["waiting"])


async def at_rest(app: App) -> bool:
    """Whether every connection that the pool has is idle."""
    report = await app.health()
    return bool(report["waiting"] == 0 and report["idle"] == report["size"] >= 2)


async def test_health_is_503_while_the_server_is_down_and_200_again_after(
    app: App, asyncpool_server: Server
) -> None:
    """The route tells an orchestrator the truth in both directions, with no restart of the app."""

    async def status() -> int:
        return (await app.client.get("/ready")).status_code

    assert await status() == 200
    try:
        await asyncpool_server.stop()
    except ServerUnsupported as error:
        pytest.skip(str(error))
    try:
        await until(status, 503)
        report = await app.health()
        assert report["status"] == "down"
        assert report["reason"]
    finally:
        await asyncpool_server.start()
    await until(status, 200)
    assert (await app.client.post("/notes", json={"text": "back"})).status_code == 201


async def test_script_counts_the_rows_of_every_table(
    database: str, watcher: psycopg.AsyncConnection[Any]
) -> None:
    """The script prints one line per table."""
    for number in range(7):
        await watcher.execute(
            f'CREATE TABLE "table {number}" AS SELECT generate_series(1, {number} * 1000)'
        )
    async with running([str(EXAMPLES / "script.py")], database) as process:
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    assert process.returncode == 0, output.decode()
    lines = [line.split(None, 1) for line in output.decode().splitlines()]
    assert lines == [[f"{number * 1000:,}", f"public.table {number}"] for number in range(7)]


@pytest.fixture
def queue() -> ModuleType:
    """The module of the queue worker."""
    return example("queue_worker")


async def results(conn: psycopg.AsyncConnection[Any]) -> list[int]:
    """For each job, how often it was done."""
    cursor = await conn.execute(
        "SELECT count(job) FROM jobs LEFT JOIN job_results ON job = id GROUP BY id ORDER BY id"
    )
    return [number for (number,) in await cursor.fetchall()]


async def to_do(conn: psycopg.AsyncConnection[Any]) -> int:
    cursor = await conn.execute("SELECT count(*) FROM jobs WHERE done_at IS NULL")
    ((number,),) = await cursor.fetchall()
    return int(number)


async def at_most(conn: psycopg.AsyncConnection[Any], number: int) -> bool:
    return await to_do(conn) <= number


async def test_each_job_is_done_once_though_a_worker_is_cancelled_in_the_middle(
    queue: ModuleType,
    database: str,
    watcher: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cancelled worker's writes are rolled back, and another worker does the job."""
    victims: list[asyncio.Task[Any] | None] = []
    original = queue.handle
    caught = asyncio.Event()

    async def handle(conn: Any, job: int, payload: str) -> None:
        await original(conn, job, payload)
        if job == 5 and not victims:
            victims.append(asyncio.current_task())
            caught.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(queue, "handle", handle)
    async with AsyncConnectionPool(database, min_size=4) as pool:
        await queue.prepare(pool)
        await queue.add(pool, 40)
        stop = asyncio.Event()
        workers = asyncio.create_task(queue.work(pool, stop))
        async with asyncio.timeout(LIMIT):
            await caught.wait()
            (victim,) = victims
            assert victim is not None
            victim.cancel()
            await until(lambda: to_do(watcher), 0)
        stop.set()
        await asyncio.wait_for(workers, LIMIT)
        assert await results(watcher) == [1] * 40
        assert pool.stats().leased == 0


async def test_a_job_that_fails_is_marked_and_holds_up_no_other(
    queue: ModuleType,
    database: str,
    watcher: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job's error is kept, its writes are not."""
    original = queue.handle

    async def handle(conn: Any, job: int, payload: str) -> None:
        await original(conn, job, payload)
        if job == 2:
            raise ValueError("no such colour")

    monkeypatch.setattr(queue, "handle", handle)
    async with AsyncConnectionPool(database, min_size=1) as pool:
        await queue.prepare(pool)
        await queue.add(pool, 3)
        for _ in range(3):
            assert await queue.do_one(pool)
        assert not await queue.do_one(pool)
    assert await results(watcher) == [1, 0, 1]
    cursor = await watcher.execute("SELECT error FROM jobs WHERE error IS NOT NULL")
    assert await cursor.fetchall() == [("ValueError('no such colour')",)]


@pytest.mark.exhaustive
async def test_a_stopped_worker_finishes_its_jobs_and_the_next_one_does_the_rest(
    database: str, watcher: psycopg.AsyncConnection[Any]
) -> None:
    """SIGTERM ends the process with status 0 and no job half done."""
    program = str(EXAMPLES / "queue_worker.py")
    async with running([program, "add", "300"], database) as process:
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    assert process.returncode == 0, output.decode()
    for most in (299, 0):
        async with running([program], database) as process:
            await until(partial(at_most, watcher, most))
            process.send_signal(signal.SIGTERM)
            output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
        assert process.returncode == 0, output.decode()
        assert b"stopped: every job begun is done" in output
        done = await results(watcher)
        assert set(done) <= {0, 1}
        assert sum(done) == 300 - await to_do(watcher)
    assert done == [1] * 300


@pytest.fixture
def listener() -> ModuleType:
    """The module of the worker that listens."""
    return example("listen_worker")


ADD = "INSERT INTO orders (what) SELECT 'thing' FROM generate_series(1, %s)"


async def handled(conn: psycopg.AsyncConnection[Any]) -> int:
    cursor = await conn.execute("SELECT count(*) FROM orders WHERE handled_at IS NOT NULL")
    ((number,),) = await cursor.fetchall()
    return int(number)


async def test_a_worker_handles_what_came_before_it_listened_and_what_comes_then(
    listener: ModuleType, database: str, watcher: psycopg.AsyncConnection[Any]
) -> None:
    """When the pool is closed it ends without an error."""
    async with AsyncConnectionPool(database, min_size=2) as pool:
        await listener.prepare(pool)
        await watcher.execute(ADD, [3])
        worker = asyncio.create_task(listener.work(pool))
        await until(lambda: handled(watcher), 3)
        await watcher.execute(ADD, [2])
        await until(lambda: handled(watcher), 5)
    await asyncio.wait_for(worker, LIMIT)


async def test_a_worker_handles_what_came_while_the_server_was_restarted(
    listener: ModuleType,
    database: str,
    asyncpool_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Orders that were added before its connection listened again are in the table."""
    connect = psycopg.AsyncConnection.connect
    monkeypatch.setattr(listener, "RETRY", 0.05)
    async with AsyncConnectionPool(database, min_size=2) as pool:
        await listener.prepare(pool)
        worker = asyncio.create_task(listener.work(pool))
        await pool.execute(ADD, [1])
        try:
            await asyncpool_server.stop()
        except ServerUnsupported as error:
            worker.cancel()
            pytest.skip(str(error))
        await asyncpool_server.start()
        async with await connect(database, autocommit=True) as conn:
            await conn.execute(ADD, [4])
            await until(lambda: handled(conn), 5)
            await conn.execute(ADD, [1])
            await until(lambda: handled(conn), 6)
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(worker, LIMIT)
        assert not pool.stats().waiting


async def test_a_worker_that_is_stopped_leaves_the_order_that_it_had_to_others(
    listener: ModuleType,
    database: str,
    watcher: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancellation undoes what it did to the order, and its connections are returned."""
    begun = asyncio.Event()

    async def handle(order: int, what: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with AsyncConnectionPool(database, min_size=2) as pool:
        await listener.prepare(pool)
        with monkeypatch.context() as patch:
            patch.setattr(listener, "handle", handle)
            worker = asyncio.create_task(listener.work(pool))
            await watcher.execute(ADD, [1])
            await asyncio.wait_for(begun.wait(), LIMIT)
            worker.cancel()
            await asyncio.wait({worker})
        assert worker.cancelled()
        another = asyncio.create_task(listener.work(pool))
        await until(lambda: handled(watcher), 1)
        another.cancel()
        await asyncio.wait({another})


@pytest.mark.exhaustive
async def test_the_program_that_listens_ends_with_sigterm(
    database: str, watcher: psycopg.AsyncConnection[Any]
) -> None:
    """With status 0, after the order that another process has added."""
    program = str(EXAMPLES / "listen_worker.py")
    async with running([program], database) as process:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), LIMIT) == (
            b"listening; Ctrl-C stops\n"
        )
        async with running([program, "add", "3 red balloons"], database) as adding:
            output, _ = await asyncio.wait_for(adding.communicate(), LIMIT)
        assert (adding.returncode, output) == (0, b"")
        line = await asyncio.wait_for(process.stdout.readline(), LIMIT)
        assert line == b"order 1: 3 red balloons\n"
        process.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    assert (process.returncode, output) == (0, b"")
