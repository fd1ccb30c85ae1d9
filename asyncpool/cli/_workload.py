"""The workload of the demo: pgbench's transfers (TPC-B-like), and the record of their outcomes.

Each transfer has a number, which the table `history` keeps. Its outcome is recorded as the client
sees it; `_tables.py` compares the outcomes with the server's data.
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
"""Tellers of each branch, as in pgbench."""
ACCOUNTS = 1000
"""Accounts of each branch; pgbench has 100,000."""

# All transfers update in this order, so that no two of them deadlock.
STATEMENTS = (
    "UPDATE asyncpool_demo.accounts SET balance = balance + %(delta)s WHERE id = %(account)s",
    "SELECT balance FROM asyncpool_demo.accounts WHERE id = %(account)s",
    "UPDATE asyncpool_demo.tellers SET balance = balance + %(delta)s WHERE id = %(teller)s",
    "UPDATE asyncpool_demo.branches SET balance = balance + %(delta)s WHERE id = %(branch)s",
    """INSERT INTO asyncpool_demo.history
       VALUES (%(number)s, %(account)s, %(teller)s, %(branch)s, %(delta)s, now())""",
)


class Outcome(IntEnum):
    """The outcome of a transfer, as the client knows it."""

    UNSENT = 0
    """No COMMIT was sent: the transfer must not be in the history."""
    FAILED = 1
    """Given up without a COMMIT, at the end of the run: it must not be in the history."""
    ACKNOWLEDGED = 2
    """The COMMIT returned: the transfer must be in the history."""
    IN_DOUBT = 3
    """The connection broke during COMMIT: the transfer may be in the history, or not."""


@dataclass(slots=True)
class Tally:
    """The counts of the workers so far."""

    outcomes: bytearray = field(default_factory=bytearray)
    """The outcome of each transfer, by its number."""
    acknowledged: int = 0
    in_doubt: int = 0
    failed: int = 0
    errors: int = 0
    """Exceptions of all kinds that a worker caught."""
    retries: int = 0
    last_error: str = ""
    waits: array[float] = field(default_factory=lambda: array("d"))
    """Seconds that each request waited for a connection."""

    def record(self, number: int, outcome: Outcome) -> None:
        """Record the outcome of a transfer."""
        self.outcomes[number] = outcome
        self.acknowledged += outcome is Outcome.ACKNOWLEDGED
        self.in_doubt += outcome is Outcome.IN_DOUBT
        self.failed += outcome is Outcome.FAILED


@dataclass(slots=True)
class Transfer:
    """One transfer; each attempt has the same values."""

    values: dict[str, Any]
    committing: bool = False

    @property
    def number(self) -> int:
        """The index in `Tally.outcomes`, and the key in the history."""
        return int(self.values["number"])


class Workload:
    """Tasks that make transfers through one pool until `stopping` is set."""

    def __init__(self, pool: AsyncConnectionPool, branches: int) -> None:
        self.pool = pool
        self.tally = Tally()
        self.stopping = False
        self.served_again = asyncio.Event()
        """Set after `expect_recovery`, when a transfer commits on a backend that was not killed."""
        self._branches = branches
        self._killed: frozenset[int] = frozenset()
        self._random = random.Random()

    def expect_recovery(self, pids: Iterable[int]) -> None:
        """Watch for a transfer on a backend other than these killed ones."""
        self._killed = frozenset(pids)

    async def run(self, tasks: int) -> None:
        """Run this number of workers until `stopping` is set.

        Raises:
            ExceptionGroup: with errors that no retry can fix.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                group.create_task(self._worker(), name=f"worker-{number}")

    async def _worker(self) -> None:
        while not self.stopping:
            transfer = self._new_transfer()
            while not await self._attempt(transfer):
                if self.stopping:
                    self.tally.record(transfer.number, Outcome.FAILED)
                    break
                self.tally.retries += 1
                # The pause avoids a tight loop while the server refuses everything.
                await asyncio.sleep(self._random.uniform(0, 0.02))

    def _new_transfer(self) -> Transfer:
        pick = self._random.randrange
        number = len(self.tally.outcomes)
        self.tally.outcomes.append(Outcome.UNSENT)
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
        """Try once; return False if another attempt is safe: no COMMIT was sent."""
        tally = self.tally
        try:
            await self._execute(transfer)
        except psycopg.OperationalError as error:
            tally.errors += 1
            tally.last_error = str(error).partition("\n")[0]
            if transfer.committing:
                tally.record(transfer.number, Outcome.IN_DOUBT)
            return transfer.committing
        except asyncio.CancelledError:
            outcome = Outcome.IN_DOUBT if transfer.committing else Outcome.FAILED
            tally.record(transfer.number, outcome)
            raise
        if transfer.committing:
            tally.record(transfer.number, Outcome.ACKNOWLEDGED)
        return True

    async def _execute(self, transfer: Transfer) -> None:
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
