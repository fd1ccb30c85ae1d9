"""An acknowledged write takes effect once; one whose caller left before it began never does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolClosed
from tests._tools import few

from ._sharing import (
    DONE,
    HEAVY,
    LEFT,
    WAYS,
    Ledger,
    active,
    all_leased,
    all_waiting,
    blocked,
    created_function,
    leave,
    leave_all,
    settled,
    started,
    warm,
    writes,
)
from ._tools import BOTH_LOOPS, eventually, in_time, needs_internals

if TYPE_CHECKING:
    from ._tools import Backends

pytestmark = needs_internals

LOOPS = BOTH_LOOPS


def slow_statements(ledger: Ledger) -> dict[str, tuple[str, list[Any], list[Any]]]:
    """Statements that take a second, each with other values for which it takes no time."""
    return {
        "read": ("SELECT pg_sleep(%s)", [0], [1.0]),
        "write": (ledger.slow_insert, [-1, 0], [-2, 1.0]),
        "plain read": (HEAVY, [1], [10_000]),
    }


@pytest.mark.parametrize("size", [1, 3])
async def test_a_write_that_waits_for_a_connection_is_not_run_when_its_caller_has_left(
    dsn: str, backends: Backends, ledger: Ledger, size: int
) -> None:
    """Blocks hold all connections and release them when no caller waits any more."""
    async with AsyncConnectionPool(dsn, min_size=size) as pool:
        await warm(pool, ledger.insert, -1)
        before = ledger.counts()[-1]
        async with all_leased(pool):
            ended = await in_time(leave_all(writes(pool, ledger, range(15))))
            assert set(ended.values()) == {LEFT}
        await settled(pool, backends)
    counts = ledger.counts()
    assert counts == {-1: before}, counts


async def test_a_write_that_waits_as_the_pool_closes_is_not_run(
    dsn: str, ledger: Ledger, backends: Backends
) -> None:
    """The caller gets the pool's error."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        async with all_leased(pool):
            tasks = [asyncio.ensure_future(w()) for w in writes(pool, ledger, range(10)).values()]
            await all_waiting(pool, 10)
            await pool.close(timeout=0)
        outcomes = await in_time(asyncio.gather(*tasks, return_exceptions=True))
        assert {type(outcome) for outcome in outcomes} == {PoolClosed}
    await eventually(lambda: not backends.pids())
    ledger.check(done=())


@pytest.mark.parametrize("size", few([1, 3]))
@pytest.mark.parametrize("kind", ["read", "write", "plain read"])
async def test_a_write_behind_slow_one_shots_is_not_run_when_its_caller_has_left(
    dsn: str, backends: Backends, ledger: Ledger, kind: str, size: int
) -> None:
    """One slow one-shot a connection runs for longer than the callers wait."""
    query, quick, slow = slow_statements(ledger)[kind]
    async with AsyncConnectionPool(dsn, min_size=size) as pool:
        await warm(pool, query, *quick)
        await warm(pool, ledger.insert, -1)
        async with started(*(pool.execute(query, slow) for _ in range(size))) as before:
            ended = await in_time(leave_all(writes(pool, ledger, range(1, 16))))
            await in_time(asyncio.gather(*before))
        await settled(pool, backends)
    backends.ask(f"DELETE FROM {ledger.name} WHERE id <= 0")
    ledger.check(done={key for key, how in ended.items() if how is DONE})


@pytest.mark.parametrize("size", few([1, 2, 4]))
async def test_a_write_that_was_given_up_does_not_replace_a_newer_value(
    dsn: str, backends: Backends, ledger: Ledger, size: int
) -> None:
    """The older write waits behind a slow one-shot; the newer one follows once its caller left."""
    async with AsyncConnectionPool(dsn, min_size=size) as pool:
        await warm(pool, "SELECT pg_sleep(%s)", 0)
        await warm(pool, ledger.update, 0, 1)
        async with started(pool.execute("SELECT pg_sleep(%s)", [1.0])) as (head,):
            keys = range(1, len(WAYS) + 1)
            await leave_all({k: partial(pool.execute, ledger.update, [1, k]) for k in keys})
            newer = [pool.execute(ledger.update, [2, k]) for k in keys]
            await in_time(asyncio.gather(*newer))
            await in_time(head)
        await settled(pool, backends)
    assert [ledger.value(k) for k in keys] == [2] * len(keys)


async def test_a_write_that_waits_for_a_row_is_cancelled_when_its_caller_leaves(
    dsn: str, backends: Backends, ledger: Ledger
) -> None:
    """When the row is unlocked, no abandoned write changes it."""
    async with AsyncConnectionPool(dsn, min_size=8) as pool:
        await warm(pool, ledger.update, 0, 1)
        async with pool.connection() as conn:
            await conn.execute(ledger.update.encode(), [5, 1])
            shot = partial(pool.execute, ledger.update, [1, 1])
            ended = await in_time(leave_all(dict.fromkeys(range(len(WAYS)), shot)))
            assert set(ended.values()) == {LEFT}
            await eventually(lambda: not blocked(backends, "UPDATE"))
        assert ledger.value() == 5
        await in_time(pool.execute(ledger.update, [2, 1]))
        await settled(pool, backends)
    assert ledger.value() == 2


async def test_a_write_that_runs_is_cancelled_when_its_caller_leaves(
    dsn: str, backends: Backends, ledger: Ledger
) -> None:
    """The write would take a minute."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        shots = {n: partial(pool.execute, ledger.slow_insert, [n, 60]) for n in range(10)}
        assert set((await in_time(leave_all(shots))).values()) == {LEFT}
        await settled(pool, backends)
    ledger.check(done=())


@pytest.mark.exhaustive
async def test_a_statement_that_cannot_be_cancelled_does_not_cost_its_neighbours_their_writes(
    dsn: str, backends: Backends, ledger: Ledger
) -> None:
    """Each other write gets its result, or fails and has no effect."""
    body = (
        "LOOP IF clock_timestamp() > until THEN RETURN; END IF;"
        " BEGIN PERFORM pg_sleep(0.1); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;"
    )
    with created_function(backends, "(until timestamptz) RETURNS void", body) as function:
        query = f"SELECT {function}(clock_timestamp() + %s * interval '1 second')"
        async with AsyncConnectionPool(dsn, min_size=1) as pool:
            await warm(pool, query, 0)
            await warm(pool, ledger.insert, -1)
            async with started(pool.execute(query, [8])) as (head,):
                shots = writes(pool, ledger, range(20))
                neighbours = [asyncio.ensure_future(shot()) for shot in shots.values()]
                await asyncio.sleep(0)
                await eventually(lambda: backends.running(function))
                head.cancel()
                outcomes = await in_time(asyncio.gather(*neighbours, return_exceptions=True), 30)
            await settled(pool, backends)
            await eventually(lambda: not active(backends))
    backends.ask(f"DELETE FROM {ledger.name} WHERE id < 0")
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(isinstance(failure, psycopg.Error) for failure in failures), failures
    ledger.check(done={n for n, outcome in enumerate(outcomes) if isinstance(outcome, str)})


@pytest.mark.parametrize("prepare", [None, True])
@pytest.mark.parametrize("code", few(["57014", "26000", "57P01", "40001"], 2))
async def test_a_statement_that_raises_an_error_of_the_server_by_itself_runs_once(
    dsn: str, backends: Backends, ledger: Ledger, code: str, prepare: bool | None
) -> None:
    """Its effect survives a rollback, and other statements are cancelled meanwhile."""
    sequence = f"{ledger.name}_s"
    backends.ask(f"CREATE SEQUENCE {sequence}")
    body = f"PERFORM nextval('{sequence}'); RAISE EXCEPTION 'mine' USING ERRCODE = '{code}';"
    with created_function(backends, "() RETURNS int", body) as function:
        async with AsyncConnectionPool(dsn, min_size=1, max_size=3) as pool:
            calls = 0

            async def call() -> None:
                nonlocal calls
                for _ in range(10):
                    calls += 1
                    with pytest.raises(psycopg.Error, match="mine") as caught:
                        await pool.fetchval(f"SELECT {function}()", prepare=prepare)
                    assert caught.value.sqlstate == code

            async def disturb() -> None:
                while True:
                    await leave("cancel", partial(pool.fetchval, "SELECT pg_sleep(0.05)"), 0.003)

            async with started(disturb(), disturb()):
                await in_time(asyncio.gather(*(call() for _ in range(5))))
            await settled(pool, backends)
    ((value, used),) = backends.ask(f"SELECT last_value, is_called FROM {sequence}")
    backends.ask(f"DROP SEQUENCE {sequence}")
    assert used
    assert value == calls


async def test_a_write_whose_prepared_statement_was_dropped_is_run_once_or_fails(
    dsn: str, backends: Backends, ledger: Ledger
) -> None:
    """The server reports the missing statement before it runs anything."""
    done: set[int] = set()
    dropped = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"  # psycopg does not notice
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for number in range(9):
            with suppress(psycopg.errors.InvalidSqlStatementName):
                await pool.execute(ledger.insert, [number], prepare=True)
                done.add(number)
            if number % 3 == 0:
                await pool.execute(dropped)
        await settled(pool, backends)
    ledger.check(done)


@pytest.mark.parametrize("seed", few(range(3)))
@pytest.mark.exhaustive
async def test_random_callers_that_leave_at_random(
    dsn: str, backends: Backends, ledger: Ledger, seed: int
) -> None:
    """No write begins more than a second after its caller left, and none runs twice."""
    random = Random(seed)
    size = random.choice([1, 2, 4])
    options = {"min_size": random.randint(0, size), "max_size": size}
    done, possible = set(), dict[int, float]()
    async with AsyncConnectionPool(dsn, **options) as pool:  # type: ignore[arg-type]
        for query, quick, _ in slow_statements(ledger).values():
            await warm(pool, query, *quick)
        await warm(pool, ledger.insert, -1)

        async def write(number: int) -> None:
            await asyncio.sleep(random.random() * 3)
            shot = partial(pool.execute, ledger.insert, [number])
            if await leave(random.choice(WAYS), shot, random.random() * 0.5) is DONE:
                done.add(number)
            else:
                ((now,),) = await asyncio.to_thread(backends.ask, "SELECT clock_timestamp()")
                possible[number] = now.timestamp()

        async def hold_up() -> None:
            while True:
                query, _, slow = random.choice(list(slow_statements(ledger).values()))
                slow = [value * 3 if value != -2 else value for value in slow]
                await pool.execute(query, slow)

        async with started(*(hold_up() for _ in range(size))):
            await in_time(asyncio.gather(*(write(number) for number in range(150))), 60)
        await settled(pool, backends)
    backends.ask(f"DELETE FROM {ledger.name} WHERE id < 0")
    ledger.check(done, possible)
    began = dict(backends.ask(f"SELECT id, extract(epoch FROM at) FROM {ledger.name}"))
    late = {n: float(began[n]) - left for n, left in possible.items() if n in began}
    assert all(seconds < 1.0 for seconds in late.values()), late
