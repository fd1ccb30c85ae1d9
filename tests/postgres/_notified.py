"""What listeners of the soak must get: each notification once, in order, but for those of a gap.

One task sends numbers, each after the last was acknowledged. What was not acknowledged may be
delivered, but not twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg import Notify

from asyncpool import AsyncConnectionPool, Gap, Notifications

PATIENCE = 90.0
"""Seconds within which the last notification of a phase must be there, or a gap instead."""

Pool = AsyncConnectionPool[Any]


class Journal:
    """The notifications of one block: those sent, and those delivered.

    Args:
        channel: where they are sent.
    """

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.acknowledged: list[int] = []
        self.delivered: list[int | None] = []
        """The numbers in the order of the iteration, and None for a gap."""
        self.stopped = False
        self._last = 0

    async def send(self, pool: Pool) -> int:
        """Send the next number and return it once it is acknowledged."""
        self._last = number = self._last + 1
        await pool.execute("SELECT pg_notify(%s, %s)", [self.channel, str(number)])
        self.acknowledged.append(number)
        return number

    def note(self, item: Notify | Gap) -> None:
        """Add what the iteration has yielded."""
        self.delivered.append(None if isinstance(item, Gap) else int(item.payload))

    async def read(self, notifications: Notifications[Notify | Gap]) -> None:
        """Add all that the iteration yields."""
        async for item in notifications:
            self.note(item)

    async def send_until_stopped(self, pool: Pool) -> None:
        """Send one number after the other, whatever the faults do to some of them."""
        while not self.stopped:
            with suppress(psycopg.Error):
                await self.send(pool)
            await asyncio.sleep(0.002)

    async def finish(self, pool: Pool) -> None:
        """Send until a number is delivered, so that all before it have been or never will be."""
        async with asyncio.timeout(PATIENCE):
            while True:
                gaps, number = self.delivered.count(None), await self.send(pool)
                while number not in self.delivered[-100:]:
                    if self.delivered.count(None) > gaps:
                        break  # it may have been sent in the gap
                    await asyncio.sleep(0.01)
                else:
                    return

    def faults(self) -> list[str]:
        """Return what is wrong: numbers doubled, out of order, or missed outside of a gap."""
        numbers = [each for each in self.delivered if each is not None]
        acknowledged, found = set(self.acknowledged), []
        if len(set(numbers)) < len(numbers):
            found.append("doubled")
        known = [number for number in numbers if number in acknowledged]
        if known != sorted(known):
            found.append("out of order")
        missed = set[int]()
        for place, stretch in enumerate(self._stretches()):
            if part := [number for number in stretch if number in acknowledged]:
                first = part[0] if place else 1  # after a gap it begins with whatever comes
                missed |= {n for n in acknowledged if first <= n <= part[-1]} - set(part)
        if missed:
            found.append(f"{len(missed)} missed, of which {sorted(missed)[:5]}")
        return [f"notifications on {self.channel}: {each}" for each in found]

    def _stretches(self) -> list[list[int]]:
        """Return the numbers between the gaps."""
        stretches: list[list[int]] = [[]]
        for each in self.delivered:
            if each is None:
                stretches.append([])
            else:
                stretches[-1].append(each)
        return stretches


@asynccontextmanager
async def listening(pool: Pool, channel: str, surprises: list[str]) -> AsyncIterator[Journal]:
    """Listen and send for the length of a block; then add what is wrong to the surprises."""
    journal = Journal(channel)
    async with pool.listen(channel, gaps=True) as notifications:
        reader = asyncio.create_task(journal.read(notifications))
        sender = asyncio.create_task(journal.send_until_stopped(pool))
        try:
            yield journal
        finally:
            journal.stopped = True
            await sender
        try:
            await journal.finish(pool)
        except (psycopg.Error, TimeoutError) as error:
            surprises.append(f"notifications on {channel}: the last is not there: {error!r}")
    await reader
    surprises += journal.faults()
