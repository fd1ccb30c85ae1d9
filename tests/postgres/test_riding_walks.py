"""Random walks in the pool's blocks, on psycopg's own connection and on the pool's.

The pool sends the BEGIN of a block with its first statement; on psycopg's connection it is sent on
entry. Nothing else may differ.
"""

from __future__ import annotations

import random
import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from asyncpool import AsyncConnectionPool, Connection
from asyncpool._blocks.transaction_options import Setting
from asyncpool._psycopg.riding import unsent_begin
from tests._tools import few

from ._tools import Backends, at_rest, in_time, needs_internals
from .test_kept_statements import Conn, Walk

pytestmark = needs_internals

DEPTH = 3
"""Maximum depth of nested blocks."""


class Stopped(Exception):
    """An error that ends a block."""


ENDS = (Stopped, psycopg.Rollback, psycopg.Error)


class BlockWalk(Walk):
    """A walk in one block; a BEGIN that is still to be sent counts as sent."""

    async def step(self, choice: random.Random) -> Any:
        """See `Walk`."""
        name, seen, status, closed = await super().step(choice)
        if unsent_begin(self.conn) is not None:
            assert status is TransactionStatus.IDLE
            status = TransactionStatus.INTRANS
        return name, seen, status, closed


@dataclass
class BlocksWalk:
    """A walk through blocks of one pool, which keeps all that a caller can see."""

    pool: AsyncConnectionPool[Any]
    backends: Backends
    choice: random.Random
    seen: list[Any] = field(default_factory=list)

    def block(self) -> AbstractAsyncContextManager[Conn]:
        """Choose a block."""
        pool, choice = self.pool, self.choice
        match choice.randrange(6):
            case 0:
                return pool.connection()
            case 1:
                settings: dict[str, Setting] = {"statement_timeout": "1h", "app.tenant": 7}
                return pool.transaction(settings=settings)
            case 2:
                return pool.transaction(
                    isolation="repeatable read", read_only=choice.random() < 0.3
                )
            case _:
                return pool.transaction()

    async def in_session(self) -> None:
        """Walk through some blocks and one-shots of a session."""
        try:
            async with self.pool.session():
                for _ in range(self.choice.randrange(1, 4)):
                    await self.in_block(nested=True)
                self.end_of_block()
        except ENDS as error:
            self.seen.append(visible(error))

    async def in_block(self, *, nested: bool = False, depth: int = 0) -> None:
        """Walk in a block; in a session also through blocks inside."""
        block, choice = self.block(), self.choice
        try:
            async with block as conn:
                walk = BlockWalk(conn)
                for _ in range(choice.randrange(5)):
                    if nested and choice.random() < 0.3:
                        await self.inside(depth + 1)
                    else:
                        self.seen.append(await in_time(walk.step(choice)))
                self.end_of_block()
        except ENDS as error:
            self.seen.append(visible(error))

    async def inside(self, depth: int) -> None:
        """Run a one-shot, or walk in a block inside."""
        pool = self.pool
        try:
            match self.choice.randrange(4):
                case 0:
                    self.seen.append(await pool.fetchall("SELECT count(*) FROM walk"))
                case 1:
                    await pool.executemany("INSERT INTO walk VALUES (%s)", [(1,), (2,)])
                case 2:
                    await pool.batch(["INSERT INTO walk VALUES (3)", "SELECT 1"])
                case _ if depth < DEPTH:
                    await self.in_block(nested=True, depth=depth)
                case _:
                    pass
        except psycopg.Error as error:
            self.seen.append(visible(error))

    def end_of_block(self) -> None:
        """End the block, perhaps with an error."""
        match self.choice.randrange(5):
            case 0:
                raise Stopped
            case 1:
                raise psycopg.Rollback

    async def run(self) -> list[Any]:
        """Walk through some blocks, and look at the table after each."""
        for _ in range(12):
            await (self.in_block() if self.choice.random() < 0.6 else self.in_session())
            await in_time(at_rest(self.pool))
            self.seen.append(self.backends.ask("SELECT n FROM walk ORDER BY n"))
        return self.seen


def visible(error: BaseException) -> tuple[type[BaseException], list[str]]:
    """Return the class and the message of an error."""
    return type(error), str(error).splitlines()[:1]


def without_names(seen: object) -> str:
    """Return what was seen without the names of connections, blocks, pools and tasks."""
    return re.sub(r"<\S*(Connection|Transaction) .*?>|pool-\d+|Task-\d+", "", repr(seen))


async def walk(dsn: str, backends: Backends, kind: type[Conn], seed: int) -> list[Any]:
    choice = random.Random(seed)
    backends.ask("DROP TABLE IF EXISTS walk, walk_other")
    backends.ask("CREATE TABLE walk (n int)")
    kwargs = {
        "autocommit": choice.random() < 0.5,
        "prepare_threshold": choice.choice([None, 0, 2, 5]),
    }
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=1, connection_class=kind, kwargs=kwargs
    ) as pool:
        return await BlocksWalk(pool, backends, choice).run()


@pytest.mark.parametrize("seed", few(range(200), 30))
async def test_a_walk_in_blocks_shows_what_psycopgs_shows(
    dsn: str, backends: Backends, seed: int
) -> None:
    """Rows, errors, states and what is committed are equal, in and after each block."""
    theirs = await walk(dsn, backends, psycopg.AsyncConnection, seed)
    ours = await walk(dsn, backends, Connection, seed)
    for number, (expected, seen) in enumerate(zip(theirs, ours, strict=False)):
        assert without_names(seen) == without_names(expected), (number, theirs[: number + 1])
    assert len(ours) == len(theirs)
