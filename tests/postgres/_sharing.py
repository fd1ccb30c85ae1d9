"""Helpers for the tests of one-shots: a ledger of writes, ways to leave a call, server facts."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import psycopg

from asyncpool import PoolTimeout

from ._tools import LIMIT, at_rest, eventually

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
        Mapping,
    )

    from asyncpool import AsyncConnectionPool

    from ._tools import Backends

WAYS = ["timeout", "asyncio.timeout", "cancel", "cancel twice", "anyio"]
"""The ways in which a caller can leave a running one-shot."""

DONE, LEFT, FAILED = "done", "left", "failed"

HEAVY = "SELECT count(*) FROM generate_series(1, %s) a, generate_series(1, 1000) b"
"""A plain read that takes about 0.1 ms times its parameter."""


async def leave(way: str, shot: Callable[..., Awaitable[Any]], after: float = 0.2) -> str:
    """Run a one-shot, leave it after some seconds, and return how the call ended."""
    try:
        match way:
            case "timeout":
                await shot(timeout=after)
            case "asyncio.timeout":
                async with asyncio.timeout(after):
                    await shot()
            case "anyio":
                with anyio.move_on_after(after) as scope:
                    await shot()
                if scope.cancelled_caught:
                    return LEFT
            case _:
                await _cancelled(shot, after, times=2 if way == "cancel twice" else 1)
    except (TimeoutError, PoolTimeout):
        return LEFT
    except psycopg.Error:
        return FAILED
    return DONE


async def leave_all(
    shots: Mapping[int, Callable[..., Awaitable[Any]]], after: float = 0.2
) -> dict[int, str]:
    """Run one-shots concurrently, leave each in one of the ways; return how each ended."""
    work = [leave(way, shot, after) for way, shot in zip(cycle(WAYS), shots.values())]
    return dict(zip(shots, await asyncio.gather(*work), strict=True))


async def _cancelled(shot: Callable[..., Awaitable[Any]], after: float, times: int) -> None:
    task = asyncio.ensure_future(shot())
    try:
        await asyncio.wait({task}, timeout=after)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({task})
    finally:
        task.cancel()
    if task.cancelled():
        raise TimeoutError
    task.result()


@asynccontextmanager
async def started(
    *works: Coroutine[Any, Any, Any],
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Run tasks for the length of a block; cancel and await them at its end."""
    tasks = [asyncio.create_task(work) for work in works]
    await asyncio.sleep(0)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def warm(pool: AsyncConnectionPool[Any], query: Any, *params: Any) -> None:
    """Run a statement several times, so that the pool knows it as quick."""
    for _ in range(5):
        await pool.execute(query, list(params))


class Ledger:
    """A table that counts how often each write was run, and one of values by key."""

    def __init__(self, backends: Backends) -> None:
        self.backends = backends
        self.name = f"ledger_{uuid4().hex[:12]}"
        self.insert = f"INSERT INTO {self.name} (id) VALUES (%s)"
        self.update = f"UPDATE {self.name}_v SET v = %s WHERE k = %s"
        self.slow_insert = f"INSERT INTO {self.name} (id) SELECT %s FROM pg_sleep(%s)"

    def counts(self) -> Counter[int]:
        """Return how often each write has taken effect."""
        return Counter(self.backends.rows(self.name))

    def value(self, key: int = 1) -> int:
        """Return the value of a key."""
        query = f"SELECT v FROM {self.name}_v WHERE k = %s"
        return int(self.backends.ask(query, key)[0][0])

    def check(self, done: Iterable[int], possible: Iterable[int] = ()) -> None:
        """Check that acknowledged writes are there once, possible ones at most once, no others."""
        counts, done, possible = self.counts(), set(done), set(possible)
        lost = done - set(counts)
        doubled = {key: times for key, times in counts.items() if times > 1}
        late = set(counts) - done - possible
        wrong = lost | set(doubled) | late
        assert not wrong, f"{lost=} {doubled=} {late=}"


@contextmanager
def created_ledger(backends: Backends) -> Iterator[Ledger]:
    """Create the tables of a ledger, with ten keys of value 0, for the length of a block."""
    ledger = Ledger(backends)
    name = ledger.name
    backends.ask(f"CREATE TABLE {name} (id bigint, at timestamptz DEFAULT statement_timestamp())")
    backends.ask(f"CREATE TABLE {name}_v (k int PRIMARY KEY, v int)")
    backends.ask(f"INSERT INTO {name}_v SELECT k, 0 FROM generate_series(1, 10) k")
    try:
        yield ledger
    finally:
        backends.ask(f"DROP TABLE {name}, {name}_v CASCADE")


@contextmanager
def created_function(backends: Backends, head: str, body: str) -> Iterator[str]:
    """Create a PL/pgSQL function for the length of a block; yield its name.

    Args:
        backends: the server.
        head: its parameters and result, such as "(n int) RETURNS int".
        body: the code between BEGIN and END.
    """
    name = f"f_{uuid4().hex[:12]}"
    words = f"LANGUAGE plpgsql AS $body$ BEGIN {body} END $body$"
    backends.ask(f"CREATE FUNCTION {name}{head} {words}".replace("%", "%%"))
    try:
        yield name
    finally:
        backends.ask(f"DROP FUNCTION {name}")


def active(backends: Backends) -> list[tuple[Any, ...]]:
    """Return the running statements of the test's application, and who blocks them."""
    query = (
        "SELECT pid, state, wait_event_type, pg_blocking_pids(pid), query FROM pg_stat_activity"
        " WHERE application_name = %s AND state <> 'idle'"
    )
    return backends.ask(query, backends._name)


def blocked(backends: Backends, part: str) -> int:
    """Return how many statements that contain `part` wait for a lock."""
    return sum(row[2] == "Lock" and part in row[4] for row in active(backends))


async def settled(pool: AsyncConnectionPool[Any], backends: Backends) -> None:
    """Wait until the pool is at rest and its backends are idle at three checks."""
    await at_rest(pool)
    looks = 0
    deadline = asyncio.get_running_loop().time() + LIMIT
    while looks < 3:
        busy = active(backends)
        looks = 0 if busy else looks + 1
        assert asyncio.get_running_loop().time() < deadline, f"it does not end: {busy}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def all_leased(pool: AsyncConnectionPool[Any]) -> AsyncIterator[None]:
    """Hold all `max_size` connections of the pool for the length of a block."""
    conns = [await pool.acquire(LIMIT) for _ in range(pool.max_size)]
    try:
        yield
    finally:
        for conn in conns:
            with suppress(psycopg.Error):  # the pool may be closed by then
                await pool.release(conn)


async def all_waiting(pool: AsyncConnectionPool[Any], number: int) -> None:
    """Wait until `number` requests are in the wait queue."""
    await eventually(lambda: pool.stats().waiting == number)


def writes(
    pool: AsyncConnectionPool[Any], ledger: Ledger, numbers: Iterable[int]
) -> dict[int, Callable[..., Awaitable[Any]]]:
    """Return for each number the one-shot that writes it to the ledger."""
    return {number: partial(pool.execute, ledger.insert, [number]) for number in numbers}
