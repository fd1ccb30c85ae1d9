"""A mixed load for the soak: everything that an application does with a pool, in random order.

Each write has a number of its own. What was acknowledged has to be in the table once, what was
rolled back has to be missing, and of what failed nobody knows.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from random import Random
from typing import Any

import anyio
import psycopg
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool

from ._notified import Journal

INSERT = "INSERT INTO soak VALUES (%s)"
HANG = 90.0
"""Seconds after which a call counts as hung: many times what any of them may take."""

FAILURES = (psycopg.OperationalError, psycopg.Rollback, psycopg.errors.QueryCanceled)

Pool = AsyncConnectionPool[Any]


class Undone(Exception):
    """Raised in a block, so that what it wrote is rolled back."""


class Books:
    """The writes and their outcomes."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.acknowledged: set[int] = set()
        self.undone: set[int] = set()
        self.outcomes: Counter[str] = Counter()
        self.surprises: list[str] = []
        """What should not have happened."""
        self.oddities: list[str] = []
        """Errors of psycopg's that a dead server does not explain, for the report."""

    def numbers(self, many: int) -> list[int]:
        """New ones."""
        return [next(self._numbers) for _ in range(many)]

    def new(self) -> int:
        """A new one."""
        return next(self._numbers)

    @asynccontextmanager
    async def writing(self, many: int = 1) -> AsyncIterator[list[int]]:
        """Numbers to be written in the block, which are acknowledged if it ends well."""
        numbers = self.numbers(many)
        yield numbers
        self.acknowledged.update(numbers)

    def compare(self, table: Counter[int]) -> None:
        """Note each difference to what is in the table, and begin a new page."""
        twice = [number for number, times in table.items() if times > 1]
        missing = self.acknowledged - table.keys()
        back = self.undone & table.keys()
        for what, found in (("twice", twice), ("missing", missing), ("not undone", back)):
            if found:
                self.surprises.append(f"{len(found)} writes {what}: {sorted(found)[:5]}")
        self.acknowledged.clear()
        self.undone.clear()


class Load:
    """Many tasks that use two pools until they are told to stop.

    Args:
        pool: the one that all use.
        small: another, whose connections are reset and checked.
        books: where it is written down.
    """

    def __init__(self, pool: Pool, small: Pool, books: Books) -> None:
        self.pool = pool
        self.small = small
        self.books = books
        self.stopped = False
        self._listeners = asyncio.Semaphore(2)
        """A listener holds its connection, and one that sends needs another."""
        often = [
            *(self.block, self.write_in_block, self.write_in_transaction, self.one_shots),
            *(self.write_by_one_shot, self.write_many, self.batch, self.cursor),
        ]
        seldom = [
            *(self.error_in_block, self.undo, self.copy_in, self.copy_out, self.stream),
            *(
                self.notify,
                self.listen,
                self.acquire,
                self.hurry,
                self.slow_one_shot,
                self.cancel_by_task,
            ),
            *(self.cancel_by_scope, self.use_small, self.look, self.manage),
        ]
        self._works = often * 3 + seldom

    async def work(self, random: Random) -> None:
        """One of the tasks."""
        while not self.stopped:
            await self.one(random.choice(self._works), random)
            await asyncio.sleep(random.uniform(0, 0.01))

    async def one(self, work: Callable[[Random], Awaitable[object]], random: Random) -> None:
        """One call, with whatever comes of it written down."""
        outcome = "ok"
        try:
            async with asyncio.timeout(HANG):
                await work(random)
        except (psycopg.Error, psycopg.Rollback) as error:
            # psycopg lets a Rollback through where the server has died by then.
            outcome = type(error).__name__
            if not isinstance(error, FAILURES) and len(self.books.oddities) < 10:
                lines = traceback.format_exception(error)
                self.books.oddities.append(f"{work.__name__}: {''.join(lines)}")
        except asyncio.CancelledError:
            self.books.outcomes["cancelled"] += 1
            raise
        except Exception as error:  # noqa: BLE001 - it is what the soak looks for
            outcome = "surprise"
            self.books.surprises.append(f"{work.__name__}: {error!r}")
        self.books.outcomes[outcome] += 1

    async def block(self, random: Random) -> None:
        """Some queries."""
        async with self.pool.connection() as conn:
            for _ in range(random.randint(1, 3)):
                cur = await conn.execute("SELECT %s::int", [7])
                self._same(await cur.fetchone(), (7,))

    async def write_in_block(self, random: Random) -> None:
        """Committed by the pool."""
        async with self.books.writing() as numbers, self.pool.connection() as conn:
            await conn.execute(INSERT, numbers)

    async def write_in_transaction(self, random: Random) -> None:
        """With a savepoint that is rolled back."""
        undone = self.books.new()
        async with self.books.writing() as numbers, self.pool.transaction() as conn:
            await conn.execute(INSERT, numbers)
            async with conn.transaction():
                await conn.execute(INSERT, [undone])
                raise psycopg.Rollback
        self.books.undone.add(undone)

    async def one_shots(self, random: Random) -> None:
        """Of each kind, side by side."""
        found = await asyncio.gather(
            self.pool.fetchval("SELECT %s::int", [7]),
            self.pool.fetchone("SELECT 1, 'one'"),
            self.pool.fetchall("SELECT * FROM generate_series(1, 3)"),
            self.pool.execute("SELECT 1"),
            self.pool.fetchval("SELECT 1 / %s::int", [0]),
            return_exceptions=True,
        )
        for answer, right in zip(
            found, (7, (1, "one"), [(1,), (2,), (3,)], "SELECT 1"), strict=False
        ):
            if not isinstance(answer, BaseException):
                self._same(answer, right)
        for answer in found:
            if isinstance(answer, BaseException) and not isinstance(answer, psycopg.Error):
                raise answer
        assert isinstance(found[4], psycopg.Error), found[4]

    async def write_by_one_shot(self, random: Random) -> None:
        """Pipelined with those of others."""
        async with self.books.writing() as numbers:
            self._same(await self.pool.execute(INSERT, numbers), "INSERT 0 1")

    async def write_many(self, random: Random) -> None:
        """All or nothing."""
        async with self.books.writing(3) as numbers:
            await self.pool.executemany(INSERT, [[number] for number in numbers])

    async def batch(self, random: Random) -> None:
        """One transaction at one round trip, that sometimes fails at its end."""
        last = "SELECT 1" if random.random() < 0.8 else "SELECT 1 / 0"
        numbers = self.books.numbers(2)
        try:
            await self.pool.batch([*((INSERT, [number]) for number in numbers), last])
        except psycopg.errors.DivisionByZero:
            self.books.undone.update(numbers)
        else:
            self.books.acknowledged.update(numbers)

    async def cursor(self, random: Random) -> None:
        """With a row factory."""
        async with self.pool.cursor(row_factory=dict_row, binary=True) as cur:
            await cur.execute("SELECT 7 AS seven")
            self._same(await cur.fetchall(), [{"seven": 7}])

    async def error_in_block(self, random: Random) -> None:
        """The server's own."""
        async with self.pool.connection() as conn:
            with suppress(psycopg.errors.DivisionByZero):
                await conn.execute("SELECT 1 / 0")
            await conn.rollback()
            await conn.execute("SELECT 1")

    async def undo(self, random: Random) -> None:
        """An error of the application's after a write."""
        number = self.books.new()
        block = self.pool.connection() if random.random() < 0.5 else self.pool.transaction()
        with suppress(Undone):
            async with block as conn:
                await conn.execute(INSERT, [number])
                self.books.undone.add(number)
                raise Undone

    async def copy_in(self, random: Random) -> None:
        """Some rows."""
        async with (
            self.books.writing(5) as numbers,
            self.pool.connection() as conn,
            conn.cursor().copy("COPY soak FROM STDIN") as copy,
        ):
            for number in numbers:
                await copy.write_row([number])

    async def copy_out(self, random: Random) -> None:
        """To the end, or not."""
        query = "COPY (SELECT repeat('x', 100) FROM generate_series(1, 2000)) TO STDOUT"
        async with self.pool.connection() as conn, conn.cursor().copy(query) as copy:
            read = 0
            async for _ in copy:
                read += 1
                if read > 100 and random.random() < 0.01:
                    break

    async def stream(self, random: Random) -> None:
        """To the end, or not."""
        async with self.pool.cursor() as cur:
            async for (number,) in cur.stream("SELECT * FROM generate_series(1, 200)"):
                if number > 50 and random.random() < 0.01:
                    break

    async def notify(self, random: Random) -> None:
        """LISTEN on the small pool, whose resets end it."""
        async with self.small.connection() as conn:
            await conn.set_autocommit(True)
            await conn.execute("LISTEN soak")
            await self.pool.execute("SELECT pg_notify('soak', '')")
            async for _ in conn.notifies(timeout=0.2, stop_after=1):
                pass

    async def listen(self, random: Random) -> None:
        """On a channel of its own, for some notifications."""
        journal = Journal(f"soak {self.books.new()}")
        async with (
            self._listeners,
            self.pool.listen(journal.channel, gaps=True) as notifications,
        ):
            for _ in range(random.randint(1, 3)):
                last = await journal.send(self.pool)
            while not {last, None} & set(journal.delivered):
                journal.note(await anext(notifications))
        self.books.surprises += journal.faults()

    async def acquire(self, random: Random) -> None:
        """With a transaction left open for the pool to end."""
        conn = await self.pool.acquire()
        try:
            await conn.execute("SELECT 1")
        finally:
            await self.pool.release(conn)

    async def hurry(self, random: Random) -> None:
        """With less time than there may be."""
        async with self.pool.connection(timeout=random.choice([0, 0.001, 0.01])) as conn:
            await conn.execute("SELECT pg_sleep(0.005)")

    async def slow_one_shot(self, random: Random) -> None:
        """One that is cancelled on the server."""
        await self.pool.fetchval("SELECT pg_sleep(0.3)", timeout=random.choice([0.02, 0.1, 1]))

    async def cancel_by_task(self, random: Random) -> None:
        """At any moment of any work."""
        task = asyncio.create_task(self.one(random.choice(self._works), random))
        await asyncio.sleep(random.choice([0, 0.001, 0.005, 0.02]))
        task.cancel()
        await asyncio.wait({task})

    async def cancel_by_scope(self, random: Random) -> None:
        """Cancel a scope, which cancels at every await from then on."""
        with anyio.move_on_after(random.choice([0, 0.001, 0.005, 0.02])):
            await self.one(random.choice(self._works), random)

    async def use_small(self, random: Random) -> None:
        """Where the next must not find what this has set."""
        async with self.small.connection() as conn:
            cur = await conn.execute("SHOW application_name")
            name = await cur.fetchone()
            await conn.execute("SET application_name = 'changed'")
        assert name != ("changed",), "the setting of another borrower"

    async def look(self, random: Random) -> None:
        """All that tells of a pool."""
        pool = random.choice([self.pool, self.small])
        now = pool.stats()
        parts = now.opening + now.idle + now.leased + now.cleaning + now.closing
        assert parts == now.size, now
        assert not (now.idle and now.waiting), now
        assert pool.name in repr(pool)
        assert pool.explain()
        pool.get_stats()
        await pool.health(timeout=0.2)

    async def manage(self, random: Random) -> None:
        """All that changes it, but for its end."""
        pool = random.choice([self.pool, self.small])
        what = random.randrange(4)
        if what == 0 and pool is self.pool:
            await pool.resize(random.randint(0, 4), random.randint(4, 10))
        elif what == 1:
            await pool.drain()
        elif what == 2:
            await pool.check()

    @staticmethod
    def _same(answer: object, right: object) -> None:
        assert answer == right, f"{answer!r} is not {right!r}"
