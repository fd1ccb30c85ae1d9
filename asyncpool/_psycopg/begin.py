"""The beginning of one transaction that differs from the connection's others.

Its characteristics are part of its BEGIN, and its settings are sent with it, in one round trip.
Nothing of it stays on the connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import psycopg
from psycopg import IsolationLevel

from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.internals import SUPPORTED
from asyncpool._psycopg.own_statements import run

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

    class BegunTransaction(psycopg.AsyncTransaction):
        """A transaction that begins with commands of its own; no transaction may be open."""

        def __init__(self, conn: Conn, commands: Sequence[bytes]) -> None:
            super().__init__(conn)
            self._commands = commands

        async def __aenter__(self) -> Self:
            if len(self._commands) == 1 or not psycopg.Pipeline.is_supported():
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
            yield from self._commands


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
        return method() if own is None else psycopg.AsyncTransaction(own), ()
    given = characteristics or Characteristics()
    if SUPPORTED and own is not None:
        return BegunTransaction(own, [given.command(b"BEGIN", own), *statements]), ()
    block = method() if own is None else psycopg.AsyncTransaction(own)
    return block, [given.command(b"SET TRANSACTION"), *statements] if given else statements


async def enter(block: Any, conn: Conn, statements: Sequence[bytes]) -> None:
    """Begin a transaction block, and run the statements that it could not begin with."""
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
