"""A driver without a server, for the unit tests and the simulator.

A subclass decides what happens in each call: it can succeed, fail, be slow, hang or resist
cancellation. A connection can be lost during any call, whatever the call returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asyncpool._core.driver import Notify


class Broken(Exception):
    """The error that the fake driver raises instead of psycopg's."""


class FakeConn:
    """A connection, with the state that psycopg would know."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.clean = True
        self.leased = False
        """Whether a user of the simulator has it."""
        self.closed = False
        self.loss_reported = False
        """Whether its loss was reported."""
        self.lose: Callable[..., Any] = lambda: None
        """Report a loss to the pool."""

    def die(self, error: BaseException | None = None) -> None:
        """Lose the connection, with or without an error from the server, and report it."""
        self.alive = False
        self.lose(error)
        self.loss_reported = True

    def __repr__(self) -> str:
        return f"<conn {self.number}>"


class FakeDriver:
    """A `Driver[FakeConn]` that counts open sockets; `call` is a subclass's."""

    def __init__(self) -> None:
        self.made = 0
        """Connections that were opened; a reference would keep a forgotten one."""
        self.watches = False
        """Whether it reports every loss."""
        self.sockets = 0
        self.deaf = 0
        """Connects that were cancelled in vain: a pool that closes gives them up."""
        self.most_sockets = 0
        self.misuse = ""
        """A forbidden call by the pool; the exception could be taken for a fault."""

    async def call(self, name: str, conn: FakeConn | None) -> None:
        """Do what the method `name` does until it returns; `open` has no connection yet."""
        raise NotImplementedError

    async def open(self) -> FakeConn:
        """Open a socket, which exists until the connect fails or the connection is closed."""
        self.sockets += 1
        self.most_sockets = max(self.most_sockets, self.sockets)
        try:
            await self.call("open", None)
        except BaseException:
            self.sockets -= 1
            raise
        self.made += 1
        return FakeConn(self.made)

    async def close(self, conn: FakeConn) -> None:
        """Close the socket, even if the call fails."""
        self._forbid(conn.closed, f"{conn} was closed twice")
        conn.closed = True
        try:
            await self.call("close", conn)
        finally:
            conn.alive = False
            self.sockets -= 1

    async def ping(self, conn: FakeConn) -> None:
        """Make one round trip."""
        self._forbid(conn.leased, f"{conn} was pinged while it was leased")
        await self.call("ping", conn)
        if not conn.alive:
            raise Broken

    async def reset(self, conn: FakeConn) -> None:
        """Make one round trip, after which the connection is clean."""
        self._forbid(conn.leased, f"{conn} was reset while it was leased")
        await self.call("reset", conn)
        if not conn.alive:
            raise Broken
        conn.clean = True

    def is_clean(self, conn: FakeConn) -> bool:
        """Whether the connection is clean and alive."""
        return conn.clean and conn.alive

    def is_alive(self, conn: FakeConn) -> bool:
        """Whether the connection is not known to be broken."""
        return conn.alive

    def watch(self, conn: FakeConn, notify: Notify) -> bool:
        """Store the callback; report a connection lost already in the next turn."""
        conn.lose = notify
        if not conn.alive:
            asyncio.get_running_loop().call_soon(notify)
        return self.watches

    def _forbid(self, done: bool, what: str) -> None:
        if done:
            self.misuse = self.misuse or what
