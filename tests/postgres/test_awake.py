"""A loop that does not sleep while the answer to its only statement is about to come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool import AsyncConnectionPool, Connection
from asyncpool._psycopg import awake

from ._tools import in_time, needs_internals

pytestmark = needs_internals


class Polls:
    """The times for which the loop asked the kernel to sleep, since they were last taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        self._timeouts: list[float | None] = []
        select = selector.select

        def record(timeout: float | None = None) -> Any:
            self._timeouts.append(timeout)
            return select(timeout)

        monkeypatch.setattr(selector, "select", record)

    def take(self) -> list[float | None]:
        taken, self._timeouts[:] = self._timeouts[:], []
        return taken


@pytest.fixture
async def polls(conn: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Polls:
    """Those of the loop of `conn`, which a moment of a whole second would show to be awake."""
    monkeypatch.setattr(awake, "MOMENT", 1.0)
    return Polls(monkeypatch)


async def test_a_statement_that_is_answered_soon_is_awaited_without_sleep(
    conn: Connection[Any], polls: Polls
) -> None:
    """The loop asks the kernel what is ready, and never to wait for it."""
    for _ in range(20):
        await conn.execute("SELECT 1")
    taken = polls.take()
    assert len(taken) >= 20
    assert set(taken) == {0}


async def test_the_loop_sleeps_between_statements(conn: Connection[Any], polls: Polls) -> None:
    """Only a statement that is under way keeps it awake."""
    await conn.execute("SELECT 1")
    polls.take()
    await asyncio.sleep(0.05)
    assert len([each for each in polls.take() if each == 0]) <= 3


async def test_a_late_answer_is_awaited_asleep_and_those_after_it_more_and_more(
    conn: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each miss doubles the number of statements that do not keep the loop awake."""
    polls, kept = Polls(monkeypatch), []
    for _ in range(18):
        await conn.execute("SELECT pg_sleep(0.01)")
        taken = polls.take()
        assert None in taken  # in the end it sleeps
        kept.append(0 in taken[: taken.index(None)])
    awake_at = [number for number, each in enumerate(kept) if each]
    assert awake_at == [0, 3, 8, 17]


async def test_an_answer_in_time_forgives_the_late_ones(
    conn: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement that is tried again may be a quick one."""
    polls = Polls(monkeypatch)
    for _ in range(4):
        await conn.execute("SELECT pg_sleep(0.01)")
    monkeypatch.setattr(awake, "MOMENT", 1.0)
    for _ in range(10):  # at the latest the ninth is tried again
        await conn.execute("SELECT 1")
    polls.take()
    for _ in range(10):
        await conn.execute("SELECT 1")
    assert set(polls.take()) == {0}


async def test_other_callbacks_run_meanwhile(conn: Connection[Any], polls: Polls) -> None:
    """The loop turns on, and is not held up."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(count())
    await conn.execute("SELECT pg_sleep(0.05)")
    other.cancel()
    assert turns > 20
    assert set(polls.take()) == {0}


async def test_several_statements_at_a_time_keep_no_loop_awake(dsn: str, polls: Polls) -> None:
    """There is other work to do."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        async with pool.connection() as first, pool.connection() as second:
            long = asyncio.create_task(first.execute("SELECT pg_sleep(0.2)"))
            await asyncio.sleep(0.05)
            polls.take()
            await second.execute("SELECT pg_sleep(0.01)")
            assert set(polls.take()) != {0}
            await in_time(long)


async def test_a_listener_leaves_the_statements_of_others_alone(dsn: str, polls: Polls) -> None:
    """Its wait for notifications is no statement that is under way."""
    async with (
        AsyncConnectionPool(dsn, min_size=2) as pool,
        pool.listen("news"),
        pool.connection() as conn,
    ):
        await conn.execute("SELECT 1")
        polls.take()
        await conn.execute("SELECT pg_sleep(0.01)")
        assert set(polls.take()) == {0}
