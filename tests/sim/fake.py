"""A driver without a server: each method can succeed, fail, be slow, hang or resist cancelling.

A connection can die in the middle of any of them, whatever that method then says.
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
    """What the fake raises where psycopg would raise an error of its own."""


class Judged(Broken):
    """An error that means something to the pool."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def judge(error: BaseException) -> Fault | None:
    """A pool's `classify`."""
    return error.fault if isinstance(error, Judged) else None


@dataclass(frozen=True)
class Climate:
    """How likely each mishap is, for each call."""

    error: float = 0.0
    slow: float = 0.0
    hang: float = 0.0
    stubborn: float = 0.0
    """A cancellation is only obeyed after a while, as psycopg's wait does."""
    refuse: float = 0.0
    """A connect is refused by the server, for want of a right or of room."""
    die: float = 0.0
    """The connection is lost, and told of: the call fails, or has succeeded just before."""


CALM = Climate()


class FakeConn:
    """A connection, with what psycopg would know of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.clean = True
        self.lent = False
        self.closed = False
        self.told = False
        """Whether its loss is no news any more."""
        self.lose: Callable[..., Any] = lambda: None

    def die(self, error: BaseException | None = None) -> None:
        """Its server goes away, with a word or without, and the loop sees it."""
        self.alive = False
        self.lose(error)
        self.told = True

    def __repr__(self) -> str:
        return f"<conn {self.number}>"


class FakeDriver:
    """A `Driver[FakeConn]` that counts the sockets there are."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.climate = CALM
        self.watches = False
        """Whether it claims to tell of every loss."""
        self.sockets = 0
        self.made = 0
        self.misuse = ""
        """What the pool did that it must never do; to raise would be to be taken for a mishap."""

    async def open(self) -> FakeConn:
        """A socket exists from here on until the connect fails or the connection is closed."""
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
        """However it ends, the socket is gone."""
        self._forbid(conn.closed, f"{conn} was closed twice")
        conn.closed = True
        try:
            await self.weather()
        finally:
            conn.alive = False
            self.sockets -= 1

    async def ping(self, conn: FakeConn) -> None:
        """A round trip."""
        self._forbid(conn.lent, f"{conn} was pinged while it was lent")
        await self.weather(conn)
        if not conn.alive:
            raise Broken

    async def reset(self, conn: FakeConn) -> None:
        """A round trip that makes it clean."""
        self._forbid(conn.lent, f"{conn} was reset while it was lent")
        await self.weather(conn)
        if not conn.alive:
            raise Broken
        conn.clean = True

    def is_clean(self, conn: FakeConn) -> bool:
        """Clean and alive."""
        return conn.clean and conn.alive

    def is_alive(self, conn: FakeConn) -> bool:
        """Whether it is known to be broken."""
        return conn.alive

    def watch(self, conn: FakeConn, tell: Notify) -> bool:
        """One that died before it was watched is told of as soon as the loop looks."""
        conn.lose = tell
        if not conn.alive:
            asyncio.get_running_loop().call_soon(tell)
        return self.watches

    def _forbid(self, done: bool, what: str) -> None:
        if done:
            self.misuse = self.misuse or what

    async def weather(self, conn: FakeConn | None = None, longest_hang: float = 10_000.0) -> None:
        """What every call may meet, on the way to its end."""
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
