"""A pool for each of many databases, under one limit of connections."""

from __future__ import annotations

import asyncio
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import (
    AsyncConnectionPool,
    Budget,
    PoolClosed,
    PoolManager,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)

from ._tools import Backends, at_rest, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def databases(backends: Backends, number: int) -> Iterator[list[str]]:
    """Create so many databases, and drop them afterwards."""
    names = [f"d{uuid4().hex[:8]}" for _ in range(number)]
    for name in names:
        backends.ask(f"CREATE DATABASE {name}")
    try:
        yield names
    finally:
        for name in names:
            backends.ask(f"DROP DATABASE IF EXISTS {name} (FORCE)")


def tenant_of(dsn: str) -> Any:
    """Return a manager's `conninfo` function, for which a key is the name of a database."""
    return lambda name: make_conninfo(dsn, dbname=name)


async def test_each_tenant_has_its_own_database_and_all_of_them_one_limit(
    dsn: str, backends: Backends
) -> None:
    """Under load on all databases at once the server never sees more connections than the limit."""
    dice = random.Random(0)
    most = 0
    with databases(backends, 6) as names:
        async with PoolManager(tenant_of(dsn), max_connections=4, max_size=3) as manager:

            async def request(name: str) -> None:
                async with manager.connection(name) as conn:
                    cur = await conn.execute("SELECT current_database(), pg_sleep(%s)", [0.002])
                    (row,) = await cur.fetchall()
                    assert row[0] == name

            load = asyncio.gather(*(request(dice.choice(names)) for _ in range(200)))
            while not load.done():
                most = max(most, len(await asyncio.to_thread(backends.pids)))
                await asyncio.sleep(0.01)
            await load
            assert 0 < most <= 4
            assert manager.budget.size <= 4
            assert sum(stats.requests for stats in manager.stats().values()) == 200
            assert len(manager) == 6


@pytest.mark.exhaustive
async def test_a_thousand_tenants_are_served_by_five_connections(
    dsn: str, backends: Backends
) -> None:
    """Each tenant has a pool."""
    served: list[int] = []

    def conninfo(number: int) -> str:
        return make_conninfo(dsn, options=f"-c app.tenant={number}")

    async with PoolManager(conninfo, max_connections=5, timeout=120.0) as manager:

        async def request(number: int) -> None:
            async with manager.connection(number) as conn:
                served.append(number)
                cur = await conn.execute("SHOW app.tenant")
                assert await cur.fetchone() == (str(number),)

        load = asyncio.gather(*(request(number) for number in range(1_000)))
        while not load.done():
            assert len(await asyncio.to_thread(backends.pids)) <= 5
            await asyncio.sleep(0.2)
        await load
        assert sorted(served) == list(range(1_000))
        assert len(manager) == 1_000


async def test_keys_are_connection_strings_where_nothing_else_is_said(dsn: str) -> None:
    """Connection strings with the same parameters in another order, or as a URL, share a pool."""
    async with PoolManager[str](max_connections=2) as manager:
        again = " ".join(reversed(dsn.split()))
        assert manager.pool(dsn) is manager.pool(again)
        assert dsn in manager
        other = make_conninfo(dsn, application_name="another")
        assert manager.pool(other) is not manager.pool(dsn)
        assert await manager.pool(dsn).fetchval("SELECT 1") == 1
        assert len(manager) == 2


async def test_names_of_pools_have_the_database_and_no_password(dsn: str) -> None:
    """The names appear in logs and errors."""
    async with PoolManager[str](max_connections=2, name="tenants") as manager:
        pool = manager.pool("postgresql://ann:sesame@db.example/shop")
        assert pool.name == "tenants: dbname=shop user=ann host=db.example"
        assert "sesame" not in repr(pool) + repr(manager)
        # libpq reads the unencoded part of the password as a part of the database's name.
        pool = manager.pool("postgresql://ann:12/sesame@db.example/shop")
        assert "sesame" not in repr(pool) + repr(manager)


async def test_the_least_recently_used_pool_at_rest_is_closed(dsn: str) -> None:
    """The pool closes with its connections; a later request makes a new one."""

    async with PoolManager(
        lambda key: make_conninfo(dsn, options=f"-c app.tenant={key}"),
        max_connections=4,
        max_pools=2,
    ) as manager:
        pools = {}
        for key in "abac":
            async with manager.connection(key) as conn:
                await conn.execute("SELECT 1")
            pools[key] = manager.pool(key)
        assert [key in manager for key in "abc"] == [True, False, True]
        await eventually(lambda: pools["b"].stats().size == 0)
        with pytest.raises(PoolClosed):
            await pools["b"].acquire()
        async with manager.connection("b") as conn:
            assert await (await conn.execute("SHOW app.tenant")).fetchone() == ("b",)


def test_a_pool_that_was_closed_before_it_was_opened_is_replaced_without_a_loop() -> None:
    """Nothing has to be awaited for it."""
    manager = PoolManager(lambda key: f"dbname={key}", max_connections=2, max_pools=1)
    asyncio.run(manager.pool("a").close())
    manager.pool("b")
    assert [key in manager for key in "ab"] == [False, True]


async def test_a_pool_that_is_in_use_is_not_closed_for_another(dsn: str) -> None:
    """There may be more than `max_pools` pools for a while; then the surplus is closed."""
    async with PoolManager(
        lambda key: make_conninfo(dsn, options=f"-c app.tenant={key}"),
        max_connections=4,
        max_pools=1,
    ) as manager:
        async with manager.connection("a") as a, manager.connection("b") as b:
            for conn in (a, b):
                await conn.execute("SELECT 1")
            assert len(manager) == 2
        manager.pool("c")
        assert len(manager) == 1


async def test_a_database_that_does_not_exist_is_its_own_tenants_trouble(
    dsn: str, backends: Backends
) -> None:
    """The request fails at once with the server's message, and the others are not affected."""
    with databases(backends, 1) as [name]:
        async with PoolManager(tenant_of(dsn), max_connections=1) as manager:
            for _ in range(3):
                with pytest.raises(PoolUnavailable) as caught:
                    await in_time(manager.pool("nobody").acquire())
                assert isinstance(caught.value.__cause__, psycopg.OperationalError)
                assert await in_time(manager.pool(name).fetchval("SELECT 1")) == 1


async def test_a_spent_budget_gives_a_timeout_with_its_numbers(dsn: str) -> None:
    """The error has the budget's numbers; a waiter is served when another pool frees a place."""
    budget = Budget(2)
    async with (
        AsyncConnectionPool(dsn, min_size=0, max_size=2, budget=budget, name="a") as a,
        AsyncConnectionPool(dsn, min_size=0, max_size=2, budget=budget, name="b") as b,
    ):
        held = [await a.acquire(), await a.acquire()]
        with pytest.raises(PoolTimeout, match=r"budget is used up .pools=1, connections=2"):
            await b.acquire(timeout=0.05)
        waiting = asyncio.create_task(b.getconn())
        await eventually(lambda: b.stats().waiting)
        await a.release(held.pop())
        await b.release(await in_time(waiting))
        await a.release(held.pop())
        await at_rest(a)
        assert budget.size == 2
    assert budget.size == 0


@pytest.mark.exhaustive
async def test_one_shots_of_several_pools_share_the_budget(dsn: str, backends: Backends) -> None:
    """One-shots that share connections in one pool do not keep those of another pool waiting."""
    budget = Budget(2)
    pools = [
        AsyncConnectionPool(dsn, min_size=0, max_size=2, budget=budget, timeout=60.0)
        for _ in range(3)
    ]

    async def work(pool: AsyncConnectionPool[Any]) -> None:
        for number in range(50):
            assert await pool.fetchval("SELECT %s::int", [number]) == number

    load = asyncio.gather(*(work(pool) for pool in pools for _ in range(5)))
    while not load.done():
        assert len(await asyncio.to_thread(backends.pids)) <= 2
        await asyncio.sleep(0.01)
    await load
    for pool in pools:
        await pool.close()
    assert budget.size == 0


async def test_cancelled_requests_give_their_places_back(dsn: str, backends: Backends) -> None:
    """After cancellations of both kinds at any moment the counts of all pools are right."""
    dice = random.Random(1)
    with databases(backends, 3) as names:
        async with PoolManager(tenant_of(dsn), max_connections=2) as manager:

            async def request(name: str) -> None:
                async with manager.connection(name) as conn:
                    await conn.execute("SELECT pg_sleep(0.005)")

            async def in_a_scope(name: str) -> None:
                with anyio.move_on_after(dice.random() * 0.1):
                    await request(name)

            tasks = []
            for _ in range(150):
                name = dice.choice(names)
                work = in_a_scope(name) if dice.random() < 0.5 else request(name)
                tasks.append(asyncio.create_task(work))
                if dice.random() < 0.5:
                    await asyncio.sleep(dice.random() * 0.01)
                    victim = dice.choice(tasks)
                    victim.cancel()
                    if dice.random() < 0.5:
                        asyncio.get_running_loop().call_soon(victim.cancel)
            await in_time(asyncio.wait(tasks), 60)
            errors = [None if task.cancelled() else task.exception() for task in tasks]
            # A request that could not be served in time is refused, in such a storm of them.
            assert all(error is None or isinstance(error, TooManyRequests) for error in errors)
            for pool in manager:
                await at_rest(pool)
            assert manager.budget.size <= 2
            for name in names:
                assert await in_time(manager.pool(name).fetchval("SELECT 1")) == 1


async def test_a_tenant_is_dropped_with_its_connections(dsn: str, backends: Backends) -> None:
    """The tenant's database can then be dropped."""
    with databases(backends, 1) as [name]:
        async with PoolManager(tenant_of(dsn), max_connections=2) as manager:
            assert await manager.pool(name).fetchval("SELECT 1") == 1
            await manager.drop(name)
            await manager.drop("nobody")
            assert name not in manager
            assert backends.pids() == set()
            backends.ask(f"DROP DATABASE {name}")


async def test_after_close_nothing_is_left_and_every_use_is_refused(
    dsn: str, backends: Backends
) -> None:
    """A lease that lasts too long is closed, as by a pool."""
    manager = PoolManager(
        lambda key: make_conninfo(dsn, options=f"-c app.tenant={key}"), max_connections=3
    )
    manager.pool("never used")
    async with manager.connection("a"):
        pass
    leased = await manager.pool("b").acquire()
    await manager.close(timeout=0)
    assert leased.closed
    assert manager.closed
    assert manager.budget.size == 0
    assert backends.pids() == set()
    with pytest.raises(PoolClosed, match="manager"):
        manager.pool("a")
    with pytest.raises(PoolClosed):
        async with manager.connection("a"):
            pass
    await manager.close()


def test_a_manager_outlives_its_event_loop(asyncpool_dsn: str) -> None:
    """A manager made at import works in two `asyncio.run`, each with the whole limit."""
    manager = PoolManager(
        lambda key: make_conninfo(asyncpool_dsn, options=f"-c app.tenant={key}"),
        max_connections=2,
    )

    async def ask(*keys: str) -> None:
        for key in keys:
            assert await in_time(manager.pool(key).fetchval("SHOW app.tenant")) == key

    async def end() -> None:
        await ask("c")
        await manager.close()

    asyncio.run(ask("a", "b"))
    asyncio.run(ask("c", "d", "a"))
    asyncio.run(end())
    assert manager.budget.size == 0


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"max_connections": 0}, ValueError, "max_connections"),
        ({"max_connections": "5"}, TypeError, "max_connections"),
        ({"max_connections": 5, "max_pools": 0}, ValueError, "max_pools"),
        ({"max_connections": 5, "max_size": 0}, ValueError, "max_size"),
        ({"max_connections": 5, "min_size": 11}, ValueError, "max_size"),
        ({"max_connections": 5, "timeout": -1}, ValueError, "timeout"),
        ({"max_connections": 5, "budget": None}, TypeError, "budget"),
        ({"max_connections": 5, "timeuot": 1}, TypeError, "timeuot"),
        ({"max_connections": 5, "conninfo": "dbname=app"}, TypeError, "conninfo"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named_at_the_call(
    options: dict[str, Any], error: type[Exception], what: str
) -> None:
    """The constructor raises, not the first use of a key."""
    with pytest.raises(error, match=what):
        PoolManager(**options)


async def test_a_key_that_is_not_a_connection_string_is_refused_at_the_call() -> None:
    """An exception of the user's `conninfo` function propagates."""
    async with PoolManager[Any](max_connections=1) as manager:
        with pytest.raises(ValueError, match="libpq"):
            manager.pool("tenant_7")
        with pytest.raises(TypeError, match="key"):
            manager.pool(7)

    def conninfo(key: str) -> str:
        raise LookupError(key)

    async with PoolManager(conninfo, max_connections=1) as failing:
        with pytest.raises(LookupError):
            failing.pool("a")
        assert len(failing) == 0
        with pytest.raises(TypeError, match="budget"):
            AsyncConnectionPool("", budget=5)  # type: ignore[arg-type]
