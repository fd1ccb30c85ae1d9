"""A proxy that gives the clients of a test one session, in a transaction that is never committed.

The proxy speaks PostgreSQL's protocol to both sides. Each client has a transaction state of its
own: the proxy implements its BEGIN, COMMIT and ROLLBACK with a savepoint. Only one client at a time
is in a transaction; another waits until it ends, as for a lock.
Source: https://www.postgresql.org/docs/current/protocol-flow.html
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import socket
import struct
import tempfile
from types import TracebackType
from typing import Any, Self

import anyio
import psycopg
from psycopg.conninfo import make_conninfo

from ._client import TOO_MUCH, Client, Refused

PARAMETERS = [
    *("server_version", "server_encoding", "client_encoding", "application_name", "DateStyle"),
    *("default_transaction_read_only", "in_hot_standby", "is_superuser", "session_authorization"),
    *("IntervalStyle", "TimeZone", "integer_datetimes", "standard_conforming_strings"),
]
CLOSE_TIMEOUT = 5.0
CANCELED = "canceling statement due to user request"


class ServerGone(ConnectionError):
    """The server has ended the session, and with it the transaction."""


class TransactionProxy:
    """The proxy; clients connect to the Unix socket in the directory `host`.

    Args:
        params: libpq's parameters for the server.
        patience: seconds for which a client waits while another idles in a transaction.
        nested: whether the client then runs inside the other's transaction, or gets an error.
    """

    def __init__(self, params: dict[str, Any], patience: float, *, nested: bool) -> None:
        self._params = params
        self._patience = patience
        self._nested = nested
        self._clients: dict[bytes, Client] = {}
        self._cleanup = contextlib.ExitStack()
        """The cleanup steps that always run; none of them suspends."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._savepoints: list[Client] = []
        """The clients with a savepoint, outermost first."""
        self._active: Client | None = None
        """The client whose messages are being sent to the server."""
        self._running = False
        """Whether the server has not finished its answer."""
        self._is_own = False
        """Whether the running statement is the proxy's own."""
        self._closing = False
        self._numbers = itertools.count(1)
        self._cancelling = asyncio.Lock()
        self._canceled = False
        """Whether a cancel request was sent that may still arrive late."""
        self._changed = asyncio.Event()
        """Set, and replaced, when a waiting client must check again."""
        self.status = b"T"
        """The server's status: T, in the transaction, or E, in a failed one."""

    async def __aenter__(self) -> Self:
        self._conn = await psycopg.AsyncConnection.connect(
            make_conninfo(**self._params), autocommit=True
        )
        pgconn = self._conn.pgconn
        self._cleanup.callback(pgconn.finish)
        try:
            await self._conn.execute("BEGIN")
            await self._conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            self.pid = pgconn.backend_pid
            given = ((name, pgconn.parameter_status(name.encode())) for name in PARAMETERS)
            self.parameters = {name.encode(): value for name, value in given if value is not None}
            # From here on only the proxy uses the socket; psycopg serves for cancel requests.
            end = socket.socket(fileno=os.dup(pgconn.socket))
            self._cleanup.callback(end.close)
            end.setblocking(False)
            unix = end.family == socket.AF_UNIX
            connect: Any = asyncio.open_unix_connection if unix else asyncio.open_connection
            self._answers, self._server = await connect(sock=end)
            self._cleanup.callback(self._server.transport.abort)
            self.host = tempfile.mkdtemp(prefix="asyncpool-rollback-")
            self._cleanup.callback(shutil.rmtree, self.host, ignore_errors=True)
            self._listen(f"{self.host}/.s.PGSQL.5432")
        except BaseException:
            self._cleanup.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        closing = asyncio.get_running_loop().create_task(self._close())
        interrupted = False
        with anyio.CancelScope(shield=True):
            while not closing.done():
                try:
                    await asyncio.wait([closing])
                except asyncio.CancelledError:
                    interrupted = True
        closing.result()
        if interrupted:
            raise asyncio.CancelledError

    async def _close(self) -> None:
        """Roll back and wait until the session has ended, for `CLOSE_TIMEOUT` seconds at most."""
        self._closing = True
        try:
            with anyio.move_on_after(CLOSE_TIMEOUT):
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                if self._running:
                    await self._conn.cancel_safe()
                self._conn.pgconn.finish()  # it sends Terminate, and the server rolls back
                while await self._answers.read(TOO_MUCH):
                    pass
        except (OSError, psycopg.Error):
            pass
        finally:
            self._cleanup.close()

    def _listen(self, path: str) -> None:
        # asyncio's server would lose a connection that it accepts while it is being closed.
        loop, listener = asyncio.get_running_loop(), socket.socket(socket.AF_UNIX)
        self._cleanup.callback(listener.close)
        listener.setblocking(False)
        listener.bind(path)
        listener.listen(100)
        self._cleanup.callback(loop.remove_reader, listener.fileno())
        loop.add_reader(listener.fileno(), self._accept, listener)

    # Turns

    async def acquire_turn(self, client: Client) -> None:
        """Wait for a client's turn, and make its savepoint if it has none.

        Raises:
            Refused: another client idles in a transaction, or this client's request was cancelled.
            ServerGone: the session has ended.
        """
        if self._active is client:
            return
        while not self._is_free_for(client):
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), self._patience)
            except TimeoutError:
                if self._running:
                    continue
                if self._may_nest(client):
                    break
                raise Refused(b"55P03", self._idle_transaction_error()) from None
            if self._closing:
                raise ServerGone
            if client.canceled:
                raise Refused(b"57014", CANCELED)
        self._active = client
        if client not in self._savepoints:
            await self.run(f"SAVEPOINT {client.savepoint}")
            self._savepoints.append(client)
        if client.canceled:
            raise Refused(b"57014", CANCELED)

    def release_turn(self, client: Client) -> None:
        """End a client's turn; its transaction, if it has one, goes on."""
        if self._active is client:
            self._active = None
            self._wake()

    async def end(self, client: Client, *, commit: bool) -> bytes | None:
        """End the transaction of the client whose turn it is.

        Returns:
            The server's error if the commit failed, else None.
        """
        name, failure = client.savepoint, None
        if commit:
            # A commit checks deferred constraints. Rolling back to the second savepoint undoes
            # only that they are now immediate.
            check = "asyncpool_check"
            failure = await self.run(
                f"SAVEPOINT {check}; SET CONSTRAINTS ALL IMMEDIATE;"
                f" ROLLBACK TO SAVEPOINT {check}; RELEASE SAVEPOINT {name}"
            )
        if failure or not commit:
            await self.run(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
        self._savepoints.remove(client)
        return failure

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _is_free_for(self, client: Client) -> bool:
        return self._active is None and (not self._savepoints or self._savepoints[-1] is client)

    def _may_nest(self, client: Client) -> bool:
        """Whether a client may begin inside the idle transaction of another."""
        return (
            self._nested
            and self._active is None
            and client not in self._savepoints
            and self.status == b"T"
        )

    def has_savepoint(self, client: Client) -> bool:
        """Whether a client has a savepoint."""
        return client in self._savepoints

    def _idle_transaction_error(self) -> str:
        return (
            "another connection of this rollback pool has been idle in a transaction for"
            f" {self._patience:g} s, and only one connection at a time can be in a transaction:"
            " end that transaction first, or use rollback_pool(nested=True)"
        )

    # The server's side

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
        self._server.write(kind + struct.pack("!I", len(body) + 4) + body)

    async def drain(self) -> None:
        """Wait until the write buffer has room."""
        await self._server.drain()

    async def answer(self) -> tuple[bytes, bytes]:
        """Return the server's next message; "Z" is the last of an answer and sets `status`.

        Raises:
            ServerGone: the session, or its transaction, has ended.
        """
        self._running = True
        try:
            kind, length = struct.unpack("!cI", await self._answers.readexactly(5))
            body = await self._answers.readexactly(length - 4)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise self._lost() from error
        if kind == b"S":
            name, value, _ = body.split(b"\0", 2)
            self.parameters[name] = value
        if kind == b"Z":
            self._running = False
            if body == b"I":
                raise self._lost()
            self.status = body
        return kind, body

    def _lost(self) -> ServerGone:
        """Disconnect all clients and wake the waiting ones, since the transaction has ended."""
        self._running, self._closing = False, True
        for client in self._clients.values():
            client.close()
        self._wake()
        return ServerGone("the session, and with it the transaction, has ended")

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

    async def _await_cancels(self) -> None:
        async with self._cancelling:
            pass
        if self._canceled:
            self._canceled = False
            if self.status == b"T":
                await self.run("SAVEPOINT asyncpool_pause; SELECT pg_catalog.pg_sleep(0.01)")
                name = "asyncpool_pause"
                await self.run(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")

    # The clients' side

    async def cancel(self, key: bytes) -> None:
        """Cancel the statement or the wait of the client with this key."""
        client = self._clients.get(key)
        if client is None:
            return
        if client.is_waiting:
            client.canceled = True
            self._wake()
            return
        async with self._cancelling:
            # The proxy's own statements are never cancelled: the request came too late then.
            if client is self._active and self._running and not self._is_own:
                self._canceled = True
                with contextlib.suppress(psycopg.Error):  # a server reports no such error either
                    await self._conn.cancel_safe(timeout=CLOSE_TIMEOUT)

    def _accept(self, listener: socket.socket) -> None:
        try:
            end, _ = listener.accept()
        except OSError:
            return  # the client has disconnected already
        if self._closing:
            end.close()
            return
        end.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: end.close())

    async def _serve(self, end: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=end)
        key = secrets.token_bytes(4)
        client = self._clients[key] = Client(self, reader, writer, next(self._numbers))
        try:
            if await client.start_session(key):
                await client.serve()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client or the server has disconnected
        finally:
            del self._clients[key]
            await self._disconnect(writer)
            if client in self._savepoints and not self._closing:
                await self._roll_back_abandoned(client)

    async def _disconnect(self, writer: asyncio.StreamWriter) -> None:
        """Disconnect a client; give it up to 1 s to receive what was sent to it."""
        writer.close()
        with contextlib.suppress(OSError), anyio.move_on_after(0 if self._closing else 1.0):
            await writer.wait_closed()
        writer.transport.abort()

    async def _roll_back_abandoned(self, client: Client) -> None:
        """Roll back the open transaction of a client that has disconnected."""
        with contextlib.suppress(ServerGone):
            while self._active is not client and not self._is_free_for(client):
                await self._changed.wait()
                if self._closing:
                    return
            self._active = client
            await self.end(client, commit=False)
            self.release_turn(client)
