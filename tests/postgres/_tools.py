"""Helpers of the tests on a real server: wait for a fact, look at the server, a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool, TooManyRequests
from asyncpool._psycopg.internals import SUPPORTED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from types import ModuleType

    from asyncpool import PoolStats

T = TypeVar("T")

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 15.0
"""Seconds that a test which is going to fail may take; no verdict depends on it."""
SOON = 5.0
"""Seconds, on a busy machine, for what takes some tenths of a second; less than any time limit that
would end it too."""

needs_internals = pytest.mark.skipif(not SUPPORTED, reason="needs psycopg's internals")
"""For what psycopg's own connection cannot do."""


def new_uvloop() -> asyncio.AbstractEventLoop:
    """An event loop of uvloop's, for a test that is skipped where there is none."""
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


BOTH_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": new_uvloop}
"""The `LOOPS` of a module whose asynchronous tests run on each of them."""


def login(dsn: str) -> str:
    """The options of a role that may log in with a DSN's own password."""
    password = conninfo_to_dict(dsn).get("password")
    return "LOGIN" if password is None else f"LOGIN PASSWORD '{password}'"


async def eventually(fact: Callable[[], T], limit: float = LIMIT) -> T:
    """Wait until `fact()` is true, and return it."""
    deadline = time.monotonic() + limit
    while not (value := fact()):
        assert time.monotonic() < deadline, f"not so within {limit} s: {value!r}"
        await asyncio.sleep(0.005)
    return value


async def in_time(work: Awaitable[T], limit: float = LIMIT) -> T:
    """The outcome of work that must not hang."""
    async with asyncio.timeout(limit):
        return await work


async def at_rest(pool: AsyncConnectionPool[Any]) -> PoolStats:
    """Wait until all connections are idle and as many as there must be; the books add up."""

    def resting() -> bool:
        now = pool.stats()
        parts = now.opening + now.idle + now.leased + now.cleaning + now.closing
        assert parts == now.size, now
        assert not (now.idle and now.waiting), now
        return now.min_size <= now.idle == now.size <= now.max_size and not now.waiting

    try:
        await eventually(resting)
    except AssertionError:
        raise AssertionError(f"{pool.explain()}\n{pool.stats()}") from None
    return pool.stats()


@contextlib.asynccontextmanager
async def overloaded(pool: AsyncConnectionPool[Any], *, refusals: int = 1) -> AsyncIterator[None]:
    """Keep fifty tasks waiting in the pool; it has refused some requests that had little time."""
    ended = asyncio.Event()

    async def use() -> None:
        while not ended.is_set():
            async with pool.connection(timeout=LIMIT):
                await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(use())
        await eventually(lambda: pool.stats().service_rate)
        for _ in range(refusals):
            with pytest.raises(TooManyRequests):
                await pool.acquire(timeout=0.02)
        try:
            yield
        finally:
            ended.set()


async def all_usable(pool: AsyncConnectionPool[Any]) -> None:
    """Every connection that the pool may have can be borrowed, at once, and answers."""
    await at_rest(pool)
    conns = await asyncio.gather(*(pool.acquire(LIMIT) for _ in range(pool.max_size)))
    assert len({await backend_of(conn) for conn in conns}) == pool.max_size
    for conn in conns:
        await pool.release(conn)
    stats = await at_rest(pool)
    assert stats.size == pool.max_size


async def backend_of(conn: psycopg.AsyncConnection[Any]) -> int:
    """The process that serves a connection, asked from the server, in a transaction of its own."""
    cur = conn.cursor(row_factory=psycopg.rows.scalar_row)
    await cur.execute("SELECT pg_backend_pid()")
    (pid,) = await cur.fetchall()
    if conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
        await conn.commit()
    return int(pid)


def descriptors() -> dict[str, str]:
    """The open descriptors of this process and what they are."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[entry.name] = str(entry.readlink())
    return found


def sockets() -> set[str]:
    """The open sockets of this process."""
    return {name for name in descriptors().values() if name.startswith("socket:")}


linux = sys.platform == "linux"
psycopg_version = tuple(int(part) for part in psycopg.__version__.split(".")[:2])


def client_of(app: Any, *, raising: bool = True) -> httpx.AsyncClient:
    """A client of an ASGI app in this event loop; `raising`: the app's exceptions come out."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=raising)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


class OwnConnect(psycopg.AsyncConnection[Any]):
    """A class whose `connect` may take options that the pool does not know."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        return await super().connect(conninfo, **kwargs)


class OwnPutconn(AsyncConnectionPool):
    """A subclass that changes how a connection is returned."""

    async def putconn(self, conn: Any, *args: Any, **kwargs: Any) -> None:
        """Return."""
        await super().putconn(conn, *args, **kwargs)


class Observer:
    """A session beside those of the tests, which all tests of a process share.

    It is opened anew if it was lost. A forked child, and a test that may not have it, opens one for
    each statement instead.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = make_conninfo(dsn, application_name="observer")
        self._conn: psycopg.Connection[Any] | None = None
        self._pid = os.getpid()

    def ask(self, query: str, params: Sequence[object] = (), *, keep: bool) -> list[Any]:
        """The rows of a statement, which is committed."""
        if not keep or os.getpid() != self._pid:
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                return _rows(conn, query, params)
        if self._conn is not None and not self._conn.closed:
            with contextlib.suppress(psycopg.Error):
                _rows(self._conn, "")  # closes it if it was lost
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)
        return _rows(self._conn, query, params)

    def close(self) -> None:
        """End the session."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None


def _rows(conn: psycopg.Connection[Any], query: str, params: Sequence[object] = ()) -> list[Any]:
    cur = conn.execute(query.encode(), params or None)
    return cur.fetchall() if cur.description else []


class Backends:
    """The server's own view of one application's sessions, from a session beside them.

    Args:
        dsn: the server's connection string.
        name: the application's name.
        observer: a session that stays open; None opens one for each statement.
    """

    def __init__(self, dsn: str, name: str, observer: Observer | None = None) -> None:
        self._keep = observer is not None
        self._observer = observer or Observer(dsn)
        self._name = name
        self.login = login(dsn)
        """The options of a role that may log in as the observer does."""

    def ask(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """The rows of a statement that is run and committed by another session."""
        return self._observer.ask(query, params, keep=self._keep)

    def pids(self) -> set[int]:
        """The backends of the application, also those that have a fleet's mark behind its name."""
        query = "SELECT pid FROM pg_stat_activity WHERE starts_with(application_name, %s)"
        return {pid for (pid,) in self.ask(query, self._name)}

    def rows(self, table: str) -> list[Any]:
        """Return the committed values of a table's first column."""
        return sorted(row[0] for row in self.ask(f"SELECT * FROM {table}"))

    def running(self, part: str) -> int:
        """How many of them are executing a statement that contains `part`."""
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = %s AND state = 'active' AND query LIKE %s"
        )
        return int(self.ask(query, self._name, f"%{part}%")[0][0])

    def terminate(self, *pids: int) -> None:
        """End these backends, or else all that the application has now, and see them gone."""
        doomed = set(pids) or self.pids()
        for pid in doomed:
            self.ask("SELECT pg_terminate_backend(%s)", pid)
        self.see_gone(doomed)

    def see_gone(self, doomed: set[int]) -> None:
        """Wait until none of these is there."""
        deadline = time.monotonic() + LIMIT
        while left := self.pids() & doomed:
            assert time.monotonic() < deadline, f"backends do not end: {left}"
            time.sleep(0.005)


class Before:
    """A TCP server in this event loop that stands before PostgreSQL.

    Args:
        dsn: PostgreSQL's. `self.dsn`, while it is open, leads here.
    """

    def __init__(self, dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        self._host, self._port = str(parts["host"]), int(str(parts["port"]))
        self._given = dsn
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = make_conninfo(
            self._given, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        for _turn in range(3):  # an accept takes so many turns, and fails once the server is closed
            await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break every connection there is."""
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._server is not None
        if not self._server.is_serving():  # it was closed after the socket's accept
            writer.transport.abort()
            return
        self._writers.add(writer)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        raise NotImplementedError


class Proxy(Before):
    """A TCP proxy before the server.

    It counts the client's turns (a turn is what it says before the server says something), and
    can make the way to the server slow, dead or deaf.
    """

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.turns = 0
        self.delay = 0.0
        """Seconds before a new connection is passed on to the server."""
        self.lag = 0.0
        """Seconds that all takes which is said, each way."""
        self.hung = 0
        """So many of the next connections are accepted, and never passed on."""
        self.open_way = asyncio.Event()
        """While this is not set, nothing that is said passes."""
        self.open_way.set()
        self.said: list[bytes] | None = None
        """A list is filled with what clients say."""
        self.tells_of_the_end = True
        """Whether the client learns that the server has hung up."""
        self.hung_up = 0
        """Connections on which the server has hung up; all that it said is passed on."""
        self.accepted = 0
        self.connecting = 0
        self.most_connecting = 0
        self.connected = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        self.accepted += 1
        self.connecting += 1
        self.most_connecting = max(self.most_connecting, self.connecting)
        try:
            try:
                if self.hung:
                    self.hung -= 1
                    await reader.read()
                    return
                await asyncio.sleep(self.delay)
                answers, upstream = await asyncio.open_connection(self._host, self._port)
                self._writers.add(upstream)
            finally:
                self.connecting -= 1
            self.connected += 1
            await self._pass_on(reader, upstream, answers, writer)
        except (OSError, RuntimeError):
            pass  # cut (uvloop's is a RuntimeError), or the server is not there
        finally:
            for end in filter(None, (writer, upstream)):
                end.transport.abort()
                self._writers.discard(end)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        client_spoke = False

        async def one_way(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, client: bool
        ) -> None:
            nonlocal client_spoke
            while data := await source.read(65536):
                await self.open_way.wait()
                # The farewell is no question.
                if client and not client_spoke and not data.startswith(b"X"):
                    self.turns += 1
                if client and self.said is not None:
                    self.said.append(data)
                client_spoke = client
                if self.lag:
                    asyncio.get_running_loop().call_later(self.lag, sink.write, data)
                    continue
                sink.write(data)
                await sink.drain()
            self.hung_up += not client
            if not client and not self.tells_of_the_end:
                await asyncio.Event().wait()
            if not sink.transport.is_closing():
                sink.write_eof()

        ways = [
            asyncio.ensure_future(one_way(reader, upstream, client=True)),
            asyncio.ensure_future(one_way(answers, writer, client=False)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


def example(name: str) -> ModuleType:
    """The module of one of the examples."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and typing look a class's names up
    spec.loader.exec_module(module)
    return module


async def run_script(script: str, *arguments: str) -> str:
    """Run Python code in a process of its own, warnings being errors, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-W", "ignore::DeprecationWarning", "-c", script, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    try:
        out, err = await in_time(process.communicate(), 60.0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    assert not err, err.decode()
    return out.decode()
