"""The workload of the demo: pgbench's transfers (TPC-B-like), and the record of their fates.

Every transfer has a number, which the history keeps. What became of it is noted from the client's
side alone; `_books.py` compares that with what the server has.
"""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from time import perf_counter
from typing import Any

import psycopg

from asyncpool import AsyncConnectionPool

TELLERS = 10
"""For each branch, as in pgbench."""
ACCOUNTS = 1000
"""For each branch; pgbench has 100,000."""

# In this order everywhere, so that no two transfers ever wait for each other in a circle.
STATEMENTS = (
    "UPDATE asyncpool_demo.accounts SET balance = balance + %(delta)s WHERE id = %(account)s",
    "SELECT balance FROM asyncpool_demo.accounts WHERE id = %(account)s",
    "UPDATE asyncpool_demo.tellers SET balance = balance + %(delta)s WHERE id = %(teller)s",
    "UPDATE asyncpool_demo.branches SET balance = balance + %(delta)s WHERE id = %(branch)s",
    """INSERT INTO asyncpool_demo.history
       VALUES (%(number)s, %(account)s, %(teller)s, %(branch)s, %(delta)s, now())""",
)


class Fate(IntEnum):
    """What the client knows of a transfer."""

    UNBOOKED = 0
    """No COMMIT was sent: it must not be in the history."""
    FAILED = 1
    """The same, after an error, and given up because the run was over."""
    ACKNOWLEDGED = 2
    """The COMMIT returned: it must be in the history."""
    IN_DOUBT = 3
    """The connection broke during COMMIT: it may be in the history, or not."""


@dataclass(slots=True)
class Tally:
    """What the clerks have seen so far."""

    fates: bytearray = field(default_factory=bytearray)
    """The fate of each transfer, by its number."""
    acknowledged: int = 0
    in_doubt: int = 0
    failed: int = 0
    errors: int = 0
    """Of all kinds, each of them seen by a clerk as an exception."""
    retries: int = 0
    last_error: str = ""
    waits: array[float] = field(default_factory=lambda: array("d"))
    """Seconds that each request waited for a connection."""

    def settle(self, number: int, fate: Fate) -> None:
        """Note what became of a transfer."""
        self.fates[number] = fate
        self.acknowledged += fate is Fate.ACKNOWLEDGED
        self.in_doubt += fate is Fate.IN_DOUBT
        self.failed += fate is Fate.FAILED


@dataclass(slots=True)
class Transfer:
    """One transfer; a second attempt has the same values."""

    values: dict[str, Any]
    committing: bool = False

    @property
    def number(self) -> int:
        """Its place in `Tally.fates`, and its key in the history."""
        return int(self.values["number"])


class Bank:
    """The clerks, one a task, who make transfers through one pool until they are told to stop."""

    def __init__(self, pool: AsyncConnectionPool, branches: int) -> None:
        self.pool = pool
        self.tally = Tally()
        self.stopping = False
        self.served_again = asyncio.Event()
        """Set at the first transfer acknowledged on a connection that was not killed."""
        self._branches = branches
        self._killed: frozenset[int] = frozenset()
        self._random = random.Random()

    def mourn(self, pids: Iterable[int]) -> None:
        """These backends were killed: look out for a transfer on another one."""
        self._killed = frozenset(pids)

    async def work(self, tasks: int) -> None:
        """Let so many clerks work, until `stopping` is set.

        Raises:
            ExceptionGroup: with errors that no retry can help.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                group.create_task(self._clerk(), name=f"clerk-{number}")

    async def _clerk(self) -> None:
        while not self.stopping:
            transfer = self._draw()
            while not await self._attempt(transfer):
                if self.stopping:
                    self.tally.settle(transfer.number, Fate.FAILED)
                    break
                self.tally.retries += 1
                # A server that refuses everything is not to be asked in a tight loop.
                await asyncio.sleep(self._random.uniform(0, 0.02))

    def _draw(self) -> Transfer:
        pick = self._random.randrange
        number = len(self.tally.fates)
        self.tally.fates.append(Fate.UNBOOKED)
        return Transfer(
            {
                "number": number,
                "account": pick(self._branches * ACCOUNTS),
                "teller": pick(self._branches * TELLERS),
                "branch": pick(self._branches),
                "delta": pick(-5000, 5001),
            }
        )

    async def _attempt(self, transfer: Transfer) -> bool:
        """Try once; False if nothing was booked and another attempt makes sense."""
        tally = self.tally
        try:
            await self._book(transfer)
        except psycopg.OperationalError as error:
            tally.errors += 1
            tally.last_error = str(error).partition("\n")[0]
            if transfer.committing:
                tally.settle(transfer.number, Fate.IN_DOUBT)
            return transfer.committing
        except asyncio.CancelledError:
            tally.settle(transfer.number, Fate.IN_DOUBT if transfer.committing else Fate.FAILED)
            raise
        if transfer.committing:
            tally.settle(transfer.number, Fate.ACKNOWLEDGED)
        return True

    async def _book(self, transfer: Transfer) -> None:
        asked = perf_counter()
        pid = 0
        async with self.pool.connection() as conn:
            self.tally.waits.append(perf_counter() - asked)
            if self.stopping:
                return
            if self._killed:
                pid = conn.info.backend_pid
            for statement in STATEMENTS:
                await conn.execute(statement, transfer.values)
            transfer.committing = True
        if pid and pid not in self._killed:
            self._killed = frozenset()
            self.served_again.set()
