"""Random programs of blocks, one-shots, errors and cancellations, compared with a model.

The model is a set of rows, a stack of savepoints and a mode. Whatever a program does in a session,
the table finally equals the model.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool
from tests._tools import few

from ._tools import BOTH_LOOPS, all_usable, in_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS = BOTH_LOOPS
WALKS = 100
"""Number of programs for each kind of connection."""
DEPTH = 5
"""Maximum depth of nested blocks."""
CURSORS = {"cursor": None, "cursor on": True, "cursor off": False}
KINDS = ["connection", "transaction", "session", "acquire", "own", *CURSORS]

BEFORE_3_3 = tuple(map(int, psycopg.__version__.split(".")[:2])) < (3, 3)


class Boom(Exception):
    """An error that a program raises."""


Failure = (Boom, psycopg.Error)


@dataclass
class Model:
    """The expected state of the server."""

    autocommit: bool
    rows: set[int] = field(default_factory=set)
    """The committed rows."""
    layers: list[set[int]] = field(default_factory=list)
    """The rows of the open transaction, one set a savepoint; empty if none is open."""
    failed: bool = False
    """Whether the transaction has failed."""

    def add(self, *rows: int, alone: bool = False) -> None:
        """Insert rows; if no transaction is open, `alone` or autocommit mode commits them."""
        if self.failed:
            return
        if not self.layers:
            if alone or self.autocommit:
                self.rows.update(rows)
                return
            self.layers.append(set())
        self.layers[-1].update(rows)

    def fail(self, *, alone: bool = False) -> None:
        """Fail a statement."""
        if not (self.layers or alone or self.autocommit):
            self.layers.append(set())
        self.failed = bool(self.layers)

    def commit(self) -> None:
        """Commit the transaction."""
        if not self.failed:
            self.rows.update(*self.layers)
        self.roll_back()

    def roll_back(self) -> None:
        """Roll back the transaction."""
        self.layers.clear()
        self.failed = False


class Program:
    """A random program.

    Args:
        pool: a pool of two connections; the second is for uses outside the session.
        seed: the seed of its random numbers.
        stops: the ways in which it may be cancelled.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], seed: str, stops: list[str]) -> None:
        self.rng = random.Random(seed)
        self.pool = pool
        self.stops = stops
        self.model = Model(autocommit=False)
        self.inside = 0
        """The number of enclosing blocks that are transactions or savepoints."""
        self.number = 0
        self.history: list[str] = []
        self.conn: Any = None

    async def run(self) -> None:
        """Run the whole program."""
        with suppress(*Failure):
            async with self.pool.session() as self.conn:
                self.model.autocommit = self.conn.autocommit
                try:
                    await self.steps(0)
                except BaseException:
                    self.model.roll_back()
                    raise
                self.model.commit()

    async def steps(self, depth: int) -> None:
        """Run some random steps."""
        for _ in range(self.rng.randint(1, 5)):
            if depth < DEPTH and self.rng.random() < 0.5:
                await self.caught(depth)
            else:
                await self.step()
            await self.agree()

    async def caught(self, depth: int) -> None:
        """Run a block, which may be cancelled; handle its error or pass it on."""
        kind, fate = self.rng.choice(KINDS), self.rng.random()
        self.record(f"{'  ' * depth}{kind}")
        if fate < 0.3:
            with suppress(*Failure):
                await self.block(kind, depth)
        elif fate < 0.45 and self.stops:
            await self.stopped(self.rng.choice(self.stops), kind, depth)
        else:
            await self.block(kind, depth)
        self.record(f"{'  ' * depth}.")

    async def block(self, kind: str, depth: int, stop: Callable[[], None] | None = None) -> None:
        """Run one block and update the model; `stop` is called before the block sleeps."""
        model, before = self.model, self.model.autocommit
        bare = kind == "acquire"
        layered = not bare and (kind in {"transaction", "own"} or bool(model.layers))
        entered = False
        height, begins = len(model.layers), not model.layers
        try:
            async with self.make(kind) as made:
                entered = True
                if layered:
                    model.layers.append(set())
                    self.inside += 1
                if (mode := CURSORS.get(kind)) is not None:
                    model.autocommit = mode
                try:
                    await self.agree()
                    if made is not None and self.rng.random() < 0.5:
                        await self.insert(made)
                    await self.steps(depth + 1)
                    if stop is not None:
                        stop()
                        await self.conn.execute("SELECT pg_sleep(60)")
                    # psycopg keeps the savepoint of a failed block that ends without an exception.
                    if self.rng.random() < 0.2 or (kind == "own" and model.failed):
                        self.record("boom")
                        raise Boom
                finally:
                    self.inside -= layered
        except BaseException:
            if entered and layered:
                del model.layers[height:]
                model.failed = False
            elif entered and not bare:
                model.roll_back()
            model.autocommit = before
            raise
        if layered and begins:
            model.commit()
        elif layered:
            top = model.layers.pop()
            model.layers[-1].update(top)
        elif not bare:
            model.commit()
        model.autocommit = before

    def make(self, kind: str) -> Any:
        """Create the block."""
        if kind == "own":
            return self.conn.transaction()
        if kind in CURSORS:
            return self.pool.cursor(autocommit=CURSORS[kind])
        return getattr(self.pool, kind)()

    async def step(self) -> None:
        """Run one statement, one-shot or batch."""
        steps: list[Callable[[], Awaitable[None]]] = [
            lambda: self.insert(self.conn),
            self.one_shot,
            self.batch,
            self.wrong,
            self.wrong_one_shot,
            self.end,
            self.snapshot_from_any_thread,
        ]
        step = self.rng.choice(steps)
        self.record(getattr(step, "__name__", ""))
        await step()

    def new(self) -> int:
        self.number += 1
        return self.number

    async def insert(self, on: Any) -> None:
        if self.model.failed:
            return
        number = self.new()
        self.record(f"insert {number}")
        await (on if hasattr(on, "execute") else self.conn).execute(
            "INSERT INTO walked VALUES (%s)", [number]
        )
        self.model.add(number)

    async def one_shot(self) -> None:
        if self.model.failed:
            return
        number = self.new()
        await self.pool.execute("INSERT INTO walked VALUES (%s)", [number])
        self.model.add(number, alone=True)

    async def batch(self) -> None:
        if self.model.failed:
            return
        numbers = [self.new(), self.new()]
        statements: list[Any] = [("INSERT INTO walked VALUES (%s)", [each]) for each in numbers]
        if self.rng.random() < 0.3:
            with suppress(psycopg.errors.DivisionByZero):
                await self.pool.batch([*statements, "SELECT 1/0"])
            return  # in an open transaction a batch is a savepoint
        await self.pool.batch(statements)
        self.model.add(*numbers, alone=True)

    async def wrong(self) -> None:
        with suppress(psycopg.Error):
            await self.conn.execute("SELECT 1/0")
        self.model.fail()

    async def wrong_one_shot(self) -> None:
        with suppress(psycopg.Error):
            await self.pool.execute("SELECT 1/0")
        self.model.fail(alone=True)

    async def end(self) -> None:
        """Commit or roll back by hand, if psycopg allows it."""
        if self.inside:
            return
        if self.rng.random() < 0.5:
            await self.conn.commit()
            self.model.commit()
        else:
            await self.conn.rollback()
            self.model.roll_back()

    async def snapshot_from_any_thread(self) -> None:
        """Use a connection by a key and one in another task: neither joins the session."""
        number, keep = self.new(), self.rng.random() < 0.5
        if self.rng.random() < 0.5:
            conn = await self.pool.getconn(key="walk")
            assert conn is not self.conn
            await conn.execute("INSERT INTO walked VALUES (%s)", [number])
            if keep:
                await conn.commit()
            keep = keep or conn.autocommit
            await self.pool.putconn(conn, "walk")
        else:

            async def other() -> None:
                with suppress(Boom):
                    async with self.pool.cursor(autocommit=False) as cur:
                        await cur.execute("INSERT INTO walked VALUES (%s)", [number])
                        if not keep:
                            raise Boom

            await asyncio.create_task(other())
        if keep:
            self.model.rows.add(number)

    async def stopped(self, stop: str, kind: str, depth: int) -> None:
        """Run a block that is cancelled while its server sleeps, unless it fails before.

        At any other point it would be unknown whether a statement had run.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self.record(stop)
        timers: list[asyncio.TimerHandle] = []
        with anyio.CancelScope() as scope:

            def arm() -> None:
                how = scope.cancel if stop == "scope" else task.cancel
                timers.append(loop.call_later(0.01, how))
                if stop == "twice":
                    timers.append(loop.call_later(0.0105, how))

            try:
                await self.block(kind, depth, arm)
            except Failure:
                pass
            except asyncio.CancelledError:
                if stop == "scope":
                    raise
            finally:
                for timer in timers:
                    timer.cancel()
        while task.cancelling():
            task.uncancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    def record(self, what: str) -> None:
        self.history.append(what)

    async def agree(self) -> None:
        """Check the connection's mode against the model once the pool's clean-up has ended."""
        session = self.pool._session_of(self.conn)
        assert session is not None
        await session.wait_ready(None)
        assert self.conn.autocommit == self.model.autocommit, self.history


@pytest.mark.parametrize("autocommit", few([False, True]))
@pytest.mark.parametrize("kind", few([None, psycopg.AsyncConnection]), ids=["ours", "psycopg"])
async def test_the_table_has_what_a_model_has(dsn: str, kind: Any, autocommit: bool) -> None:
    """After each of many random programs the table equals the model."""
    keywords: dict[str, Any] = {} if kind is None else {"connection_class": kind}
    stops = ["cancel", "twice", "scope"] if kind is None else []
    async with AsyncConnectionPool(
        dsn, min_size=2, kwargs={"autocommit": autocommit}, **keywords
    ) as pool:
        await pool.execute("DROP TABLE IF EXISTS walked")
        await pool.execute("CREATE TABLE walked (x int)")
        for seed in range(WALKS):
            program = Program(pool, f"{seed} {kind} {autocommit}", stops)
            try:
                await in_time(program.run(), 60)
                found = [x for (x,) in await pool.fetchall("SELECT x FROM walked ORDER BY x")]
                assert found == sorted(program.model.rows)
                assert pool._sessions == {}
            except BaseException as error:
                error.add_note("\n".join([f"seed {seed}", *program.history]))
                raise
            await pool.execute("TRUNCATE walked")
        await all_usable(pool)
        assert pool.stats().connects == 2, "a connection was lost"
        await pool.execute("DROP TABLE walked")
