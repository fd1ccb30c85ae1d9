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
import secrets
import shutil
import socket
import tempfile
from types import TracebackType
from typing import Any, Self

import anyio
import psycopg

from ._client import Client, Refused
from ._server_session import CLOSE_TIMEOUT, ServerGone, ServerSession

CANCELED = "canceling statement due to user request"


class TransactionProxy:
    """The proxy; clients connect to the Unix socket in the directory `host`.

    Args:
        params: libpq's parameters for the server.
        patience: seconds for which a client waits while another idles in a transaction.
        nested: whether the client then runs inside the other's transaction, or gets an error.
    """

    def __init__(self, params: dict[str, Any], patience: float, *, nested: bool) -> None:
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
        self._closing = False
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        """Set, and replaced, when a waiting client must check again."""
        self._server = ServerSession(params, self._disconnect_all)

    async def __aenter__(self) -> Self:
        try:
            await self._server.open(self._cleanup)
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
                await self._server.end()
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
                if self._server.is_running:
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
            await self._server.run(f"SAVEPOINT {client.savepoint}")
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
            failure = await self._server.run(
                f"SAVEPOINT {check}; SET CONSTRAINTS ALL IMMEDIATE;"
                f" ROLLBACK TO SAVEPOINT {check}; RELEASE SAVEPOINT {name}"
            )
        if failure or not commit:
            await self._server.run(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
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
            and self._server.status == b"T"
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

    def _disconnect_all(self) -> None:
        """Disconnect all clients and wake the waiting ones, since the transaction has ended."""
        self._closing = True
        for client in self._clients.values():
            client.close()
        self._wake()

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
        await self._server.cancel(lambda: client is self._active)

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
        client = self._clients[key] = Client(
            self, self._server, reader, writer, next(self._numbers)
        )
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
