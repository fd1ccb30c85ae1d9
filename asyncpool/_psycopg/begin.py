"""The beginning of one transaction that differs from the connection's others.

Its characteristics are part of its BEGIN, and its settings are sent with it, in one round trip.
Nothing of it stays on the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Self

import psycopg
from psycopg import IsolationLevel
from psycopg.abc import PQGen

from asyncpool._psycopg.committing import can_commit
from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.internals import SUPPORTED
from asyncpool._psycopg.own_statements import run
from asyncpool._psycopg.riding import (
    IDLE,
    UnsentBegin,
    begin_now,
    forget_begin,
    unsent_begin,
)
from asyncpool._psycopg.socket_watcher import READY
from asyncpool._psycopg.statement import HAS_PIPELINE
from asyncpool._psycopg.transport import transport_of

Conn = psycopg.AsyncConnection[Any]

PLAIN_TRANSACTIONS = {Connection.transaction, psycopg.AsyncConnection.transaction}
"""The method `transaction` of a class that does not override it."""


class Characteristics:
    """The characteristics of a transaction; None: as the connection's others.

    Args:
        isolation: the isolation level.
        read_only: whether it may not write.
        deferrable: whether a serializable read-only transaction waits until it cannot fail.
    """

    def __init__(
        self,
        isolation: IsolationLevel | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> None:
        self._isolation = isolation
        self._read_only = read_only
        self._deferrable = deferrable

    def __bool__(self) -> bool:
        values = (self._isolation, self._read_only, self._deferrable)
        return any(value is not None for value in values)

    def command(self, start: bytes, conn: Conn | None = None) -> bytes:
        """Return `start`, BEGIN or SET TRANSACTION, with these characteristics.

        Args:
            start: the beginning of the command.
            conn: the connection whose own characteristics are added.
        """
        isolation, read_only, deferrable = self._isolation, self._read_only, self._deferrable
        if conn is not None:
            isolation = conn.isolation_level if isolation is None else isolation
            read_only = conn.read_only if read_only is None else read_only
            deferrable = conn.deferrable if deferrable is None else deferrable
        parts = [start]
        if isolation is not None:
            parts.append(f"ISOLATION LEVEL {isolation.name.replace('_', ' ')}".encode())
        if read_only is not None:
            parts.append(b"READ ONLY" if read_only else b"READ WRITE")
        if deferrable is not None:
            parts.append(b"DEFERRABLE" if deferrable else b"NOT DEFERRABLE")
        return b" ".join(parts)


if SUPPORTED:

    class PoolTransaction(psycopg.AsyncTransaction):
        """A transaction block of the pool.

        Args:
            conn: psycopg's connection.
            commands: those that begin the transaction, if none is open; None: the connection's own.
        """

        def __init__(self, conn: Conn, commands: Sequence[bytes] | None = None) -> None:
            super().__init__(conn)
            self._commands = commands
            self._has_commands = True
            """Whether psycopg sends the commands of the block."""

        def enter_unsent(self) -> bool:
            """Enter the block without the server, if BEGIN can be sent with its first statement."""
            conn: Any = self._conn
            options = (self._commands or (b"",))[1:]
            if not _may_begin_later(conn) or any(map(CONVERTING.search, options)):
                return False
            conn._unsent_begin = UnsentBegin(self._commands or (conn._get_tx_start_command(),))
            self._run_without_commands(self._enter_gen())
            return True

        def leave_unsent(self) -> bool:
            """Leave the block, if nothing was sent in it, and nothing of it is under way."""
            conn: Any = self._conn
            transport = transport_of(conn)
            if (
                unsent_begin(conn) is None
                or transport is None
                or transport.phase is not READY
                or conn._num_transactions != 1
                or conn.lock.locked()
            ):
                return False
            conn._unsent_begin = None
            self._run_without_commands(self._exit_gen(None, None, None))
            return True

        def leave_for_commit(self) -> bool:
            """Leave the block, if `committing.commit` is to end its transaction."""
            conn: Any = self._conn
            if not (can_commit(conn, blocks=1) and self._outer_transaction):
                return False
            self._run_without_commands(self._exit_gen(None, None, None))
            return True

        def _run_without_commands(self, gen: PQGen[Any]) -> None:
            """Have psycopg count the block, whose commands are sent in another way."""
            self._has_commands = False
            for _ in gen:
                msg = "bug: a block that sends nothing waits"
                raise AssertionError(msg)
            self._has_commands = True

        async def __aenter__(self) -> Self:
            if len(self._commands or ()) < 2 or not HAS_PIPELINE:
                return await super().__aenter__()
            has_begun = False
            try:
                async with self._conn.pipeline():  # one round trip for all of them
                    await super().__aenter__()
                    has_begun = True
            except psycopg.Error as error:
                await _end(self, error, has_begun=has_begun)
                raise
            return self

        def _get_enter_commands(self) -> Iterator[bytes]:
            if not self._has_commands:
                return iter(())
            if self._outer_transaction and self._commands is not None:
                return iter(self._commands)
            return super()._get_enter_commands()

        def _get_commit_commands(self) -> Iterator[bytes]:
            return iter(()) if self._sends_nothing() else super()._get_commit_commands()

        def _get_rollback_commands(self) -> Iterator[bytes]:
            return iter(()) if self._sends_nothing() else super()._get_rollback_commands()

        def _sends_nothing(self) -> bool:
            """Whether the end of this block needs no command, as where its BEGIN was not sent."""
            return not self._has_commands or (self._outer_transaction and forget_begin(self._conn))


CONVERTING = re.compile(
    rb"\b(client_encoding|intervalstyle|datestyle|timezone|standard_conforming_strings)\b",
    re.IGNORECASE,
)
"""Settings on which the conversion of values depends: they must hold before it."""


def _may_begin_later(conn: Any) -> bool:
    """Whether the BEGIN of a block may wait for the block's first statement.

    The connection's own `wait` has to see what else comes first.
    """
    transport = transport_of(conn)
    return (
        transport is not None
        and transport.phase is READY
        and HAS_PIPELINE
        and type(conn).wait is Connection.wait
        and conn.pgconn.transaction_status == IDLE
        and conn._pipeline is None
        and not (conn._num_transactions or conn._tpc or conn.lock.locked())
    )


def enter_unsent(block: Any, statements: Sequence[bytes]) -> bool:
    """Enter a block without the server, if BEGIN can be sent with its first statement."""
    return SUPPORTED and type(block) is PoolTransaction and not statements and block.enter_unsent()


def leave_unsent(block: Any) -> bool:
    """Leave a block in which nothing was sent; False: its end needs the server."""
    return SUPPORTED and type(block) is PoolTransaction and block.leave_unsent()


def leave_for_commit(block: Any) -> bool:
    """Leave a block whose COMMIT is still to be sent, by `committing.commit`; False: it cannot."""
    return SUPPORTED and type(block) is PoolTransaction and block.leave_for_commit()


def begin_was_refused(conn: Any) -> bool:
    """Whether the server has refused the BEGIN of the open block, and each statement with it."""
    unsent = unsent_begin(conn)
    return unsent is not None and unsent.refused


def block_on(
    conn: Any,
    characteristics: Characteristics | None = None,
    statements: Sequence[bytes] = (),
    *,
    past_overrides: bool = False,
) -> tuple[Any, Sequence[bytes]]:
    """Return `conn.transaction()`, and the statements that `enter` has to run in it.

    Where the class does not override the method, its generator is left out: the event loop ends a
    generator that is dropped, with a ROLLBACK, when the connection may be another borrower's.

    Args:
        conn: the connection.
        characteristics: those of this transaction.
        statements: the statements to begin it with.
        past_overrides: whether to leave out the method also where the class overrides it.
    """
    method, own = conn.transaction, None
    if past_overrides:
        own = conn
    elif getattr(method, "__func__", None) in PLAIN_TRANSACTIONS:
        own = method.__self__
    if not (characteristics or statements):
        if own is None:
            return method(), ()
        return PoolTransaction(own) if SUPPORTED else psycopg.AsyncTransaction(own), ()
    given = characteristics or Characteristics()
    if SUPPORTED and own is not None:
        return PoolTransaction(own, [given.command(b"BEGIN", own), *statements]), ()
    block = method() if own is None else psycopg.AsyncTransaction(own)
    return block, [given.command(b"SET TRANSACTION"), *statements] if given else statements


async def enter(block: Any, conn: Conn, statements: Sequence[bytes]) -> None:
    """Begin a transaction block, and run the statements that it could not begin with."""
    if unsent_begin(conn) is not None:
        await begin_now(conn)
    await block.__aenter__()
    try:
        for statement in statements:
            await run(conn, statement)
    except psycopg.Error as error:
        await _end(block, error, has_begun=not conn.closed)
        raise


async def _end(block: Any, error: psycopg.Error, *, has_begun: bool) -> None:
    """Roll back a block that has begun, but whose statements were refused."""
    if has_begun:
        await block.__aexit__(type(error), error, error.__traceback__)
