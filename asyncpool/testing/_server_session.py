"""The transaction proxy's session on the server: its messages, answers and cancel requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

PARAMETERS = [
    *("server_version", "server_encoding", "client_encoding", "application_name", "DateStyle"),
    *("default_transaction_read_only", "in_hot_standby", "is_superuser", "session_authorization"),
    *("IntervalStyle", "TimeZone", "integer_datetimes", "standard_conforming_strings"),
]
CLOSE_TIMEOUT = 5.0
CHUNK = 1 << 16
"""Bytes that are read, or passed on to a client, before the proxy waits."""


class ServerGone(ConnectionError):
    """The server has ended the session, and with it the transaction."""


class ServerSession:
    """One session, in a transaction.

    Args:
        params: libpq's parameters for the server.
        on_end: is called when the server has ended the session or its transaction.
    """

    def __init__(self, params: dict[str, Any], on_end: Callable[[], None]) -> None:
        self.is_running = False
        """Whether the server has not finished its answer."""
        self.status = b"T"
        """The server's status: T, in the transaction, or E, in a failed one."""
        self._params = params
        self._on_end = on_end
        self._is_own = False
        """Whether the running statement is the proxy's own."""
        self._cancelling = asyncio.Lock()
        self._canceled = False
        """Whether a cancel request was sent that may still arrive late."""

    async def open(self, cleanup: contextlib.ExitStack) -> None:
        """Connect, and begin the transaction.

        Args:
            cleanup: gets the steps that close the session; none of them suspends.
        """
        self._conn = await psycopg.AsyncConnection.connect(
            make_conninfo(**self._params), autocommit=True
        )
        pgconn = self._conn.pgconn
        cleanup.callback(pgconn.finish)
        await self._conn.execute("BEGIN")
        await self._conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        self.pid = pgconn.backend_pid
        given = ((name, pgconn.parameter_status(name.encode())) for name in PARAMETERS)
        self.parameters = {name.encode(): value for name, value in given if value is not None}
        # From here on only the proxy uses the socket; psycopg serves for cancel requests.
        end = socket.socket(fileno=os.dup(pgconn.socket))
        cleanup.callback(end.close)
        end.setblocking(False)
        unix = end.family == socket.AF_UNIX
        connect: Any = asyncio.open_unix_connection if unix else asyncio.open_connection
        self._answers, self._writer = await connect(sock=end)
        cleanup.callback(self._writer.transport.abort)

    async def end(self) -> None:
        """Roll back, and wait until the server has ended the session."""
        if self.is_running:
            await self._conn.cancel_safe()
        self._conn.pgconn.finish()  # it sends Terminate, and the server rolls back
        while await self._answers.read(CHUNK):
            pass

    @property
    def escapes(self) -> bool:
        """Whether a backslash in a plain string is currently an escape in the session."""
        return self.parameters.get(b"standard_conforming_strings") == b"off"

    @property
    def encoding(self) -> bytes:
        """PostgreSQL's name of the session's client encoding."""
        return self.parameters.get(b"client_encoding", b"UTF8")

    def send(self, kind: bytes, body: bytes) -> None:
        """Send a message to the server."""
        self._writer.write(kind + struct.pack("!I", len(body) + 4) + body)

    async def drain(self) -> None:
        """Wait until the write buffer has room."""
        await self._writer.drain()

    async def answer(self) -> tuple[bytes, bytes]:
        """Return the server's next message; "Z" is the last of an answer and sets `status`.

        Raises:
            ServerGone: the session, or its transaction, has ended.
        """
        self.is_running = True
        try:
            kind, length = struct.unpack("!cI", await self._answers.readexactly(5))
            body = await self._answers.readexactly(length - 4)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise self._lost() from error
        if kind == b"S":
            name, value, _ = body.split(b"\0", 2)
            self.parameters[name] = value
        if kind == b"Z":
            self.is_running = False
            if body == b"I":
                raise self._lost()
            self.status = body
        return kind, body

    async def run(self, sql: str) -> bytes | None:
        """Run a statement of the proxy's own; return the server's error, or None."""
        await self._await_cancels()
        self._is_own = True
        try:
            for _ in range(5):
                failure = None
                self.send(b"Q", sql.encode() + b"\0")
                while (message := await self.answer())[0] != b"Z":
                    if message[0] == b"E":
                        failure = message[1]
                # A late cancel request for an earlier statement may have hit this one.
                if failure is None or b"C57014\0" not in failure or not sql.startswith("ROLLBACK"):
                    break
            return failure
        finally:
            self._is_own = False

    async def cancel(self, is_current: Callable[[], bool]) -> None:
        """Cancel the running statement, unless it is the proxy's own.

        Args:
            is_current: whether the statement is still the one to cancel; asked after a cancel
                request that is under way.
        """
        async with self._cancelling:
            # If it is the proxy's own, the request came too late.
            if is_current() and self.is_running and not self._is_own:
                self._canceled = True
                with contextlib.suppress(psycopg.Error):  # a server reports no such error either
                    await self._conn.cancel_safe(timeout=CLOSE_TIMEOUT)

    async def _await_cancels(self) -> None:
        async with self._cancelling:
            pass
        if self._canceled:
            self._canceled = False
            if self.status == b"T":
                await self.run("SAVEPOINT asyncpool_pause; SELECT pg_catalog.pg_sleep(0.01)")
                name = "asyncpool_pause"
                await self.run(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")

    def _lost(self) -> ServerGone:
        self.is_running = False
        self._on_end()
        return ServerGone("the session, and with it the transaction, has ended")
