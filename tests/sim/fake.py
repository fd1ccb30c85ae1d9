"""A driver without a server: each call can succeed, fail, be slow, hang or resist cancellation.

A connection can be lost during any call, whatever the call returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from asyncpool._core.driver import Notify
from asyncpool.faults import Fault


class Broken(Exception):
    """The error that the fake driver raises instead of psycopg's."""


class Judged(Broken):
    """An error with a `Fault`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def judge(error: BaseException) -> Fault | None:
    """The `classify` function of the pools."""
    return error.fault if isinstance(error, Judged) else None


@dataclass(frozen=True)
class Climate:
    """The probability of each fault, for each call."""

    error: float = 0.0
    slow: float = 0.0
    hang: float = 0.0
    stubborn: float = 0.0
    """A cancellation takes effect only after a while, as in psycopg's wait."""
    refuse: float = 0.0
    """The server refuses a connect, for lack of permission or of room."""
    die: float = 0.0
    """The connection is lost and reported; the call fails, or has succeeded just before."""


CALM = Climate()


class FakeConn:
    """A connection, with the state that psycopg would know."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.clean = True
        self.leased = False
        self.closed = False
        self.loss_reported = False
        """Whether its loss was reported."""
        self.lose: Callable[..., Any] = lambda: None

    def die(self, error: BaseException | None = None) -> None:
        """Lose the connection, with or without an error from the server, and report it."""
        self.alive = False
        self.lose(error)
        self.loss_reported = True

    def __repr__(self) -> str:
        return f"<conn {self.number}>"


class FakeDriver:
    """A `Driver[FakeConn]` that counts open sockets."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.climate = CALM
        self.watches = False
        """Whether it reports every loss."""
        self.sockets = 0
        self.made = 0
        self.misuse = ""
        """A forbidden call by the pool; an exception could be taken for a fault."""

    async def open(self) -> FakeConn:
        """Open a socket, which exists until the connect fails or the connection is closed."""
        self.sockets += 1
        try:
            await self.weather(longest_hang=20.0)
            if self.random.random() < self.climate.refuse:
                raise Judged(self.random.choice([Fault.ACCESS, Fault.CAPACITY]))
        except BaseException:
            self.sockets -= 1
            raise
        self.made += 1
        conn = FakeConn(self.made)
        conn.alive = self.random.random() >= self.climate.die
        return conn

    async def close(self, conn: FakeConn) -> None:
        """Close the socket, even if the call fails."""
        self._forbid(conn.closed, f"{conn} was closed twice")
        conn.closed = True
        try:
            await self.weather()
        finally:
            conn.alive = False
            self.sockets -= 1

    async def ping(self, conn: FakeConn) -> None:
        """Make one round trip."""
        self._forbid(conn.leased, f"{conn} was pinged while it was leased")
        await self.weather(conn)
        if not conn.alive:
            raise Broken

    async def reset(self, conn: FakeConn) -> None:
        """Make one round trip, after which the connection is clean."""
        self._forbid(conn.leased, f"{conn} was reset while it was leased")
        await self.weather(conn)
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

    async def weather(self, conn: FakeConn | None = None, longest_hang: float = 10_000.0) -> None:
        """Apply the faults of the current climate to a call."""
        random, climate = self.random, self.climate
        try:
            draw = random.random()
            if draw < climate.hang:
                await asyncio.sleep(longest_hang)
                raise Broken
            if draw < climate.hang + climate.slow:
                await asyncio.sleep(random.choice([0.01, 0.3, 3.0]))
            else:
                for _ in range(random.randrange(3)):
                    await asyncio.sleep(0)
            if conn is not None and random.random() < climate.die:
                if random.random() < 0.5:
                    asyncio.get_running_loop().call_soon(conn.die)
                    return
                conn.die()
            if random.random() < climate.error:
                raise Broken
        except asyncio.CancelledError:
            if random.random() < climate.stubborn:
                await asyncio.sleep(random.choice([0, 0.2, 30.0]))
            raise
