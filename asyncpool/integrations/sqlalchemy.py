"""SQLAlchemy's asynchronous engine on an AsyncConnectionPool.

SQLAlchemy asks its own pool for a connection, and that pool leases one from ours. It keeps no
connections, only a record for each one. SQLAlchemy's "connect" event fires once in a connection's
life, not once a lease, and settings that SQLAlchemy changes are restored before the next lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import psycopg
import sqlalchemy
from psycopg.types.hstore import register_hstore
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.types.string import TextLoader
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord

from asyncpool import AsyncConnectionPool, Cluster, PoolError, ReadPool

from ._connection_settings import DEFAULTS, Conn, ConnectionSettings, dedupe_handlers, run_now

__all__ = ["Engines", "LeasePool", "async_creator", "create_async_engine", "engines"]

logger = logging.getLogger("asyncpool")

Source = AsyncConnectionPool[Any] | ReadPool[Any]

DIALECTS = ("postgresql+psycopg", "postgresql+psycopg_async")
INSTEAD = {
    "pool_size": "min_size of the AsyncConnectionPool",
    "max_overflow": "max_size of the AsyncConnectionPool, which counts all connections",
    "pool_timeout": "timeout of the AsyncConnectionPool",
    "pool_recycle": "max_lifetime of the AsyncConnectionPool",
    "pool_pre_ping": "nothing, as the pool watches its connections, or check of the pool",
    "pool_use_lifo": "nothing, as the pool hands out the most recently used connection first",
    "connect_args": "conninfo and kwargs of the AsyncConnectionPool",
    "creator": "conninfo and connection_class of the AsyncConnectionPool",
    "async_creator": "conninfo and connection_class of the AsyncConnectionPool",
    "poolclass": "nothing, as it is LeasePool",
    "pool": "nothing, as it is a LeasePool",
}
"""Options of SQLAlchemy's engines that this one refuses, and what to use instead."""


class Engines(NamedTuple):
    """The engines of a cluster, of which `engines` returns a pair."""

    write: AsyncEngine
    read: AsyncEngine


def engines(
    cluster: Cluster[Any], url: str | URL = "postgresql+psycopg://", **options: Any
) -> Engines:
    """Create an engine for writes, on the primary, and one for reads, on the hosts that take reads.

    The transactions of the second one are read only on every host. In a block of
    `cluster.own_writes()`, what was committed with the first one is seen by the second one. See
    docs/reading-own-writes.md for a session that chooses between them.

    Args:
        cluster: the cluster.
        url, options: as for `create_async_engine`, for both engines.

    Raises:
        TypeError, ValueError: as for `create_async_engine`.
    """
    if not isinstance(cluster, Cluster):
        msg = f"cluster must be an asyncpool.Cluster, not {cluster!r}"
        raise TypeError(msg)
    read_only = {**options.get("execution_options", {}), "postgresql_readonly": True}
    return Engines(
        create_async_engine(cluster.write, url, **options),
        create_async_engine(cluster.read, url, **{**options, "execution_options": read_only}),
    )


def create_async_engine(
    pool: Source, url: str | URL = "postgresql+psycopg://", **options: Any
) -> AsyncEngine:
    """Create an engine of SQLAlchemy that leases its connections from a pool.

    The engine does not own the pool: `engine.dispose()` closes no connection. The pool may have
    other users, with or without engines; all wait in one queue. Inside a `pool.session()` the
    engine leases connections of its own, since SQLAlchemy commits and rolls back whole
    transactions.

    Args:
        pool: the source of connections; `cluster.read` may be one. Settings that SQLAlchemy changes
            on a connection, such as its isolation level, are restored when it is returned.
        url: names the dialect, which must be psycopg's; the rest of the URL is not used.
        options: options of `sqlalchemy.ext.asyncio.create_async_engine`, except those that belong
            to the pool.

    Raises:
        TypeError: `pool` is no pool, or an option belongs to the pool; the message says what to use
            instead.
        ValueError: the dialect belongs to another driver.
    """
    if not isinstance(pool, AsyncConnectionPool | ReadPool):
        msg = f"pool must be an asyncpool.AsyncConnectionPool, not {pool!r}"
        raise TypeError(msg)
    for name in options:
        if name in INSTEAD:
            msg = f"{name} is not an option of an engine on a pool; instead: {INSTEAD[name]}"
            raise TypeError(msg)
    if (given := make_url(url).drivername) not in DIALECTS:
        msg = f"the url must be {DIALECTS[0]}://, as the connections are psycopg's: got {given}://"
        raise ValueError(msg)

    class Leases(LeasePool):
        source = pool

    engine = sqlalchemy_asyncio.create_async_engine(
        url, async_creator=_lease_of(pool), poolclass=Leases, **options
    )
    # With it SQLAlchemy passes to `LeasePool` also connections that it would otherwise drop, such
    # as those collected as garbage.
    engine.dialect.has_terminate = True
    register = _type_registration(engine, options)
    sqlalchemy.event.listen(engine.sync_engine, "connect", register)
    return engine


def async_creator(pool: AsyncConnectionPool[Any]) -> Callable[[], Coroutine[Any, Any, Conn]]:
    """An `async_creator` for an engine with `poolclass=NullPool`, on a pool without other users.

    A connection that such an engine closes is returned to the pool, even one that should be closed,
    and settings that the engine changed on it stay. `create_async_engine` of this module handles
    both.

    Args:
        pool: a pool made with `close_returns=True`.

    Returns:
        An async callable that leases a connection with the settings that SQLAlchemy expects.

    Raises:
        ValueError: the pool was made without `close_returns`, so each close would close it.
    """
    if not pool.close_returns:
        msg = (
            f"pool {pool.name!r} must be made with close_returns=True, or the engine closes each"
            " connection; asyncpool.integrations.sqlalchemy.create_async_engine accepts any pool"
        )
        raise ValueError(msg)

    async def lease() -> Conn:
        conn: Conn = await AsyncConnectionPool.acquire(pool, session=False)
        try:
            DEFAULTS.apply(conn)
        except BaseException:
            await pool.release(conn)
            raise
        dedupe_handlers(conn)
        return conn

    return lease


class Record(_ConnectionRecord):
    """SQLAlchemy's record of one connection of the pool; it holds the connection during a lease.

    The record lasts as long as the connection, so that "connect" listeners are called once.
    """

    pending: DBAPIConnection | None = None
    """A leased connection that SQLAlchemy has not got yet."""
    original: ConnectionSettings = DEFAULTS
    """The settings with which the pool handed out the connection."""
    engine_settings: ConnectionSettings | None = None
    """The engine's settings for it; None: "connect" listeners have not been called yet."""

    def __init__(self, leases: LeasePool) -> None:
        super().__init__(leases, connect=False)
        self.leases = leases

    @property
    def is_invalidated(self) -> bool:
        """Whether SQLAlchemy wants the connection closed instead of returned."""
        return self._is_hard_or_soft_invalidated()

    def get_connection(self) -> DBAPIConnection:
        """See `ConnectionPoolEntry`."""
        adapted = super().get_connection()
        if self.engine_settings is None:
            conn = driver(adapted)
            dedupe_handlers(conn)
            self.engine_settings = ConnectionSettings.of(conn)
            self.leases.records[conn] = self
        return adapted

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Close the connection, or return it after a cancellation: the pool then ends its query."""
        adapted = self.dbapi_connection
        cancelled = e is not None and not isinstance(e, Exception)
        if soft or not cancelled or adapted is None or self.engine_settings is None:
            super().invalidate(e, soft)
            return
        self.leases.dispatch.invalidate(adapted, self, e)
        self.finalize_callback.clear()
        self.dbapi_connection = None
        self.leases.give_back(driver(adapted), self.original)


class LeasePool(NullPool):
    """An engine's pool, which keeps no connections: it leases them from `source`."""

    source: ClassVar[Source]
    """The pool that owns the connections."""

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(creator, **options)
        self.records: weakref.WeakKeyDictionary[Conn, Record] = weakref.WeakKeyDictionary()
        """A record holds its connection only during a lease, or neither would be collected."""
        self._create = self._invoke_creator
        self._invoke_creator = cast("Any", self._adopt)
        self._loop: asyncio.AbstractEventLoop | None = None

    def status(self) -> str:
        """Describe the pool that owns the connections."""
        return f"LeasePool of {self.source!r}"

    def give_back(self, conn: Conn, original: ConnectionSettings) -> None:
        """Return a connection with its original settings; if they cannot be restored, close it."""
        try:
            original.apply(conn)
        except (psycopg.Error, RuntimeError):
            conn.pgconn.finish()
        self._release(conn)

    def _do_get(self) -> ConnectionPoolEntry:
        new = Record(self)
        adapted = self._create(new)
        record = self.records.get(driver(adapted), new)
        self._prepare(record, adapted)
        if record is new:
            record.pending = adapted
        else:
            record.dbapi_connection = adapted
        return record

    def _adopt(self, record: Record) -> DBAPIConnection:
        """Give a record its connection, where SQLAlchemy would connect."""
        adapted, record.pending = record.pending, None
        if adapted is None:  # a "checkout" listener refused the connection, so lease another one
            adapted = self._create(record)
            record.engine_settings = None
            self._prepare(record, adapted)
        return adapted

    def _prepare(self, record: Record, adapted: DBAPIConnection) -> None:
        conn = driver(adapted)
        self._loop = asyncio.get_running_loop()
        record.original = ConnectionSettings.of(conn)
        try:
            (record.engine_settings or DEFAULTS).apply(conn)
        except BaseException:
            self._end(conn)
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        assert isinstance(record, Record), "bug: a record of another pool"
        adapted = record.dbapi_connection
        if adapted is None:
            return  # the connection is closed, or detached: then its borrower closes it
        invalidated = record.is_invalidated
        record.dbapi_connection = None
        if invalidated:
            self._close_connection(adapted)
        else:
            self.give_back(driver(adapted), record.original)

    def _close_connection(self, connection: DBAPIConnection, *, terminate: bool = False) -> None:
        conn = driver(connection)
        self.records.pop(conn, None)
        # The garbage collector may call this, in any thread.
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the pool handles that
                self._loop.call_soon_threadsafe(self._end, conn)

    def _end(self, conn: Conn) -> None:
        conn.pgconn.finish()
        self._release(conn)

    def _release(self, conn: Conn) -> None:
        try:
            run_now(self.source.release(conn))
        except PoolError as error:
            name = self.source.name
            logger.info("pool %r: %s", name, error, extra={"pool": name})

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        """Invalidate only this connection; SQLAlchemy's own method invalidates all others too."""
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)


def _lease_of(pool: Source) -> Callable[[], Awaitable[Conn]]:
    """Return a callable that leases a connection, outside of the task's session."""
    if isinstance(pool, ReadPool):
        return partial(pool.acquire, session=False)
    # A subclass may override `acquire` without the keyword.
    return partial(AsyncConnectionPool.acquire, pool, session=False)


def driver(adapted: Any) -> Conn:
    """Return psycopg's connection inside SQLAlchemy's adapter."""
    return cast("Conn", adapted.driver_connection)


def _type_registration(
    engine: AsyncEngine, options: dict[str, Any]
) -> Callable[[DBAPIConnection, ConnectionPoolEntry], None]:
    """Return a "connect" listener that registers the types of SQLAlchemy's dialect."""
    adapters = engine.dialect.create_connect_args(engine.url)[1]["context"]

    def register(adapted: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        conn = driver(adapted)
        # The dialect has looked for hstore at the engine's first connection.
        if (hstore := adapters.types.get("hstore")) is not None:
            register_hstore(hstore, conn)
        if (loads := options.get("json_deserializer")) is not None:
            set_json_loads(loads, conn)
        if (dumps := options.get("json_serializer")) is not None:
            set_json_dumps(dumps, conn)
        if options.get("native_inet_types") is False:
            for name in ("inet", "cidr"):
                conn.adapters.register_loader(name, TextLoader)

    return register
