"""A fake driver each of whose calls meets a fault with the probability of the current climate."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from asyncpool.faults import Fault
from tests.fake import Broken, FakeConn, FakeDriver


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
    deaf: float = 0.0
    """A connect that is cancelled succeeds all the same, after a while."""
    refuse: float = 0.0
    """The server refuses a connect, for lack of permission or of room."""
    die: float = 0.0
    """The connection is lost and reported; the call fails, or has succeeded just before."""


CALM = Climate()


class WeatherDriver(FakeDriver):
    """A driver whose calls are as reliable as its climate."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.climate = CALM

    async def open(self) -> FakeConn:
        """Open a connection, which may be lost already."""
        conn = await super().open()
        conn.alive = self.random.random() >= self.climate.die
        return conn

    async def call(self, name: str, conn: FakeConn | None) -> None:
        """Apply the climate; the server may refuse a connect, and no close loses a connection."""
        if name == "open":
            deaf = self.climate.deaf
            try:
                await self.weather(longest_hang=20.0)
            except asyncio.CancelledError:
                if self.random.random() >= deaf:
                    raise
                self.deaf += 1
                loop = asyncio.get_running_loop()
                until = loop.time() + 30.0
                while (left := until - loop.time()) > 0:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(left)
            if self.random.random() < self.climate.refuse:
                raise Judged(self.random.choice([Fault.ACCESS, Fault.CAPACITY]))
        else:
            await self.weather(None if name == "close" else conn)

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
