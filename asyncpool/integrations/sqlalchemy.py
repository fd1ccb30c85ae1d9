"""SQLAlchemy's asynchronous engine on a pool of ours.

SQLAlchemy asks its own pool for a connection, and that borrows from ours: nothing is kept here but
what is to be known of each connection. It is told of a connection once in its life, though it is
lent many times, and what it changes on one is put back before the next borrower.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, ClassVar, cast

import psycopg
import sqlalchemy
from psycopg.rows import tuple_row
from psycopg.types.hstore import register_hstore
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.types.string import TextLoader
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord

from asyncpool import AsyncConnectionPool, PoolError

__all__ = ["LeasePool", "async_creator", "create_async_engine"]

logger = logging.getLogger("asyncpool")

Conn = psycopg.AsyncConnection[Any]

IDLE = psycopg.pq.TransactionStatus.IDLE
DIALECTS = ("postgresql+psycopg", "postgresql+psycopg_async")
ELSEWHERE = {
    "pool_size": "min_size of the AsyncConnectionPool",
    "max_overflow": "max_size of the AsyncConnectionPool, which is all of them",
    "pool_timeout": "timeout of the AsyncConnectionPool",
    "pool_recycle": "max_lifetime of the AsyncConnectionPool",
    "pool_pre_ping": "nothing, as it watches its connections, or check of the AsyncConnectionPool",
    "pool_use_lifo": "nothing, as what was used last is lent first",
    "connect_args": "conninfo and kwargs of the AsyncConnectionPool",
    "creator": "conninfo and connection_class of the AsyncConnectionPool",
    "async_creator": "conninfo and connection_class of the AsyncConnectionPool",
    "poolclass": "nothing: it is LeasePool",
    "pool": "nothing: it is a LeasePool",
}
"""What SQLAlchemy's engines take and this one does not, and what there is in its place."""


def create_async_engine(
    pool: AsyncConnectionPool[Any], url: str | URL = "postgresql+psycopg://", **options: Any
) -> AsyncEngine:
    """An engine of SQLAlchemy's whose connections are borrowed from a pool and returned to it.

    The pool is not the engine's: `engine.dispose()` closes nothing. It may have other users, plain
    ones and engines, who wait in one line with this one. Inside of a `pool.session()` the engine
    has connections of its own: SQLAlchemy commits and rolls back the whole of a transaction.

    Args:
        pool: where connections come from; SQLAlchemy's settings of one connection, such as its
            isolation level, are put back when it is returned.
        url: what names the dialect, which must be psycopg's; the rest of it connects to nothing.
        options: as for `sqlalchemy.ext.asyncio.create_async_engine`, but for those that are the
            pool's own.

    Raises:
        TypeError: an option is the pool's; the message says what there is in its place.
        ValueError: the dialect is another driver's.
    """
    if not isinstance(pool, AsyncConnectionPool):
        msg = f"pool must be an asyncpool.AsyncConnectionPool, not {pool!r}"
        raise TypeError(msg)
    for name in options:
        if name in ELSEWHERE:
            msg = f"{name} is not for an engine on a pool: in its place there is {ELSEWHERE[name]}"
            raise TypeError(msg)
    if (given := make_url(url).drivername) not in DIALECTS:
        msg = f"the url must be {DIALECTS[0]}://, as the connections are psycopg's: got {given}://"
        raise ValueError(msg)

    class Leases(LeasePool):
        lender = pool

    engine = sqlalchemy_asyncio.create_async_engine(
        url, async_creator=partial(pool._borrow, None), poolclass=Leases, **options
    )
    # It has: SQLAlchemy is to leave to `LeasePool` what it would else drop, as when a connection of
    # its own is collected as garbage.
    engine.dialect.has_terminate = True
    register = _registers(engine, options)
    sqlalchemy.event.listen(engine.sync_engine, "connect", register)
    return engine


def async_creator(pool: AsyncConnectionPool[Any]) -> Callable[[], Coroutine[Any, Any, Conn]]:
    """An `async_creator` for an engine with `poolclass=NullPool`, on a pool that has no other user.

    What such an engine closes is returned. It tells connections that are to be returned from those
    that are to be closed no better than that, and what it changes on one stays:
    `create_async_engine` of this module does both.

    Args:
        pool: one that was made with `close_returns=True`.

    Returns:
        An async callable that borrows a connection, in the state that SQLAlchemy takes it to have.

    Raises:
        ValueError: the pool was made without `close_returns`; what is closed would be closed.
    """
    if not pool.close_returns:
        msg = (
            f"pool {pool.name!r} must be made with close_returns=True, or what the engine is done"
            " with is closed; asyncpool.integrations.sqlalchemy.create_async_engine takes any pool"
        )
        raise ValueError(msg)

    async def borrow() -> Conn:
        conn: Conn = await pool._borrow(None)
        try:
            PLAIN.put_on(conn)
        except BaseException:
            await pool.release(conn)
            raise
        _forget_repeated_handlers(conn)
        return conn

    return borrow


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What SQLAlchemy takes for granted of a connection, or changes."""

    autocommit: bool
    isolation_level: psycopg.IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    row_factory: Any

    @classmethod
    def of(cls, conn: Conn) -> ConnectionSettings:
        """How a connection is now."""
        return cls(
            conn.autocommit,
            conn.isolation_level,
            conn.read_only,
            conn.deferrable,
            conn.row_factory,
        )

    def put_on(self, conn: Conn) -> None:
        """Make it so; outside of transactions there is no I/O in this.

        Raises:
            psycopg.Error: it is closed, or in a transaction.
            RuntimeError: something is under way on it.
        """
        now = ConnectionSettings.of(conn)
        if now == self:
            return
        conn.row_factory = self.row_factory
        values = astuple(self)[:-1]
        for name, value in zip(self.__slots__, values, strict=False):
            if value != getattr(now, name):
                at_once(getattr(conn, f"set_{name}")(value))


PLAIN = ConnectionSettings(False, None, None, None, tuple_row)


class Record(_ConnectionRecord):
    """What SQLAlchemy knows of one connection of the pool; the connection itself while it is lent.

    It lasts as long as the connection, so that whoever listens to "connect" hears of it once.
    """

    in_hand: DBAPIConnection | None = None
    """Borrowed, and SQLAlchemy has not been told yet."""
    own: ConnectionSettings = PLAIN
    """How it came from the pool."""
    manner: ConnectionSettings | None = None
    """How the engine wants it; None: it has not been told of it yet."""

    def __init__(self, leases: LeasePool) -> None:
        super().__init__(leases, connect=False)
        self.leases = leases

    def get_connection(self) -> DBAPIConnection:
        """See `ConnectionPoolEntry`."""
        adapted = super().get_connection()
        if self.manner is None:
            conn = driver(adapted)
            _forget_repeated_handlers(conn)
            self.manner = ConnectionSettings.of(conn)
            self.leases.records[conn] = self
        return adapted

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Have it closed, but for whoever was cancelled: then the pool ends what is under way."""
        adapted = self.dbapi_connection
        cancelled = e is not None and not isinstance(e, Exception)
        if soft or not cancelled or adapted is None or self.manner is None:
            super().invalidate(e, soft)
            return
        self.leases.dispatch.invalidate(adapted, self, e)
        self.finalize_callback.clear()
        self.dbapi_connection = None
        self.leases.give_back(driver(adapted), self.own)


class LeasePool(NullPool):
    """The pool of an engine: it keeps no connection, but borrows and returns them."""

    lender: ClassVar[AsyncConnectionPool[Any]]
    """Whose they are."""

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(creator, **options)
        self.records: weakref.WeakKeyDictionary[Conn, Record] = weakref.WeakKeyDictionary()
        """No record has a connection that is not lent, or both would last for ever."""
        self._create = self._invoke_creator
        self._invoke_creator = cast("Any", self._adopt)
        self._loop: asyncio.AbstractEventLoop | None = None

    def status(self) -> str:
        """The pool that it borrows from."""
        return f"LeasePool of {self.lender!r}"

    def give_back(self, conn: Conn, own: ConnectionSettings) -> None:
        """Return a connection as it came; if that cannot be, it is closed."""
        try:
            own.put_on(conn)
        except (psycopg.Error, RuntimeError):
            conn.pgconn.finish()
        self._release(conn)

    def _do_get(self) -> ConnectionPoolEntry:
        new = Record(self)
        adapted = self._create(new)
        record = self.records.get(driver(adapted), new)
        self._borrowed(record, adapted)
        if record is new:
            record.in_hand = adapted
        else:
            record.dbapi_connection = adapted
        return record

    def _adopt(self, record: Record) -> DBAPIConnection:
        """What a record is made of, where SQLAlchemy would connect."""
        adapted, record.in_hand = record.in_hand, None
        if adapted is None:  # a listener to "checkout" has found it unfit: another, in its place
            adapted = self._create(record)
            record.manner = None
            self._borrowed(record, adapted)
        return adapted

    def _borrowed(self, record: Record, adapted: DBAPIConnection) -> None:
        conn = driver(adapted)
        self._loop = asyncio.get_running_loop()
        record.own = ConnectionSettings.of(conn)
        try:
            (record.manner or PLAIN).put_on(conn)
        except BaseException:
            self._end(conn)
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        assert isinstance(record, Record), "bug: a record of another pool"
        adapted = record.dbapi_connection
        if adapted is None:
            return  # it was closed, or it is its borrower's now, who will
        worn_out = record._is_hard_or_soft_invalidated()
        record.dbapi_connection = None
        if worn_out:
            self._close_connection(adapted)
        else:
            self.give_back(driver(adapted), record.own)

    def _close_connection(self, connection: DBAPIConnection, *, terminate: bool = False) -> None:
        conn = driver(connection)
        self.records.pop(conn, None)
        # This may be the garbage collector's work, anywhere in the program.
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the lender sees to the rest
                self._loop.call_soon_threadsafe(self._end, conn)

    def _end(self, conn: Conn) -> None:
        conn.pgconn.finish()
        self._release(conn)

    def _release(self, conn: Conn) -> None:
        try:
            at_once(self.lender.release(conn))
        except PoolError as error:
            name = self.lender.name
            logger.info("pool %r: %s", name, error, extra={"pool": name})

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        """One connection is broken. What that means for the others the lender knows better."""
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)


def driver(adapted: Any) -> Conn:
    """psycopg's connection, of what SQLAlchemy makes of it."""
    return cast("Conn", adapted.driver_connection)


def at_once(work: Coroutine[Any, Any, object]) -> None:
    """Run what does not wait, where nothing can be awaited.

    Raises:
        RuntimeError: it would have to wait; it is ended.
    """
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    msg = "something is under way on the connection"
    raise RuntimeError(msg)


def _registers(
    engine: AsyncEngine, options: dict[str, Any]
) -> Callable[[DBAPIConnection, ConnectionPoolEntry], None]:
    """What tells a connection of the types that SQLAlchemy would have it connect with."""
    dialect: Any = engine.dialect

    def register(adapted: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        conn = driver(adapted)
        # Known once the engine has had its first connection, which it has by now.
        if (hstore := dialect._psycopg_adapters_map.types.get("hstore")) is not None:
            register_hstore(hstore, conn)
        if (loads := options.get("json_deserializer")) is not None:
            set_json_loads(loads, conn)
        if (dumps := options.get("json_serializer")) is not None:
            set_json_dumps(dumps, conn)
        if options.get("native_inet_types") is False:
            for name in ("inet", "cidr"):
                conn.adapters.register_loader(name, TextLoader)

    return register


def _forget_repeated_handlers(conn: Conn) -> None:
    """SQLAlchemy adds its handler of notices at each connect, and here some connects are none."""
    conn._notice_handlers[:] = dict.fromkeys(conn._notice_handlers)
