"""`pool.listen()` where something breaks: the server, the network, the consumer, the pool."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg import Notify
from psycopg.conninfo import make_conninfo

from asyncpool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    Connection,
    Gap,
    Notifications,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
)
from tests._tools import few

from ._tools import (
    BOTH_LOOPS,
    Backends,
    Proxy,
    all_usable,
    at_rest,
    eventually,
    in_time,
)

if TYPE_CHECKING:
    from asyncpool.testing import Server

LOOPS = BOTH_LOOPS
KINDS = pytest.mark.parametrize("kind", few([Connection, psycopg.AsyncConnection]))
CHANNELS = "SELECT array_agg(c) FROM pg_listening_channels() AS c"


async def next_of(notifications: Notifications[Any]) -> str | type[Gap]:
    """The payload of the next notification, or the type of a gap."""
    item = await in_time(anext(notifications))
    return Gap if isinstance(item, Gap) else item.payload


def listening_pid(pool: AsyncConnectionPool[Any]) -> int:
    """The backend of the pool's listener; the one that has listened for longest, if it moves."""
    return listening_pids(pool)[0]


def listening_pids(pool: AsyncConnectionPool[Any]) -> list[int]:
    """The backends of the pool's listeners, in the order of their leases."""
    leases = pool.explain().leases
    return [each.pid for each in leases if "listening on" in each.holder and each.pid]


@KINDS
async def test_after_a_restart_of_the_server_the_gap_comes_first(
    server: Server, dsn: str, backends: Backends, kind: type[Any]
) -> None:
    """Then what was sent after it; what was read before is not lost."""
    async with (
        AsyncConnectionPool(dsn, min_size=2, connection_class=kind) as pool,
        pool.listen("a", gaps=True) as notifications,
    ):
        await pool.execute("SELECT pg_notify('a', 'before')")
        await eventually(lambda: notifications._listener.buffer._items)
        await server.restart()
        await eventually(lambda: len(notifications._listener.buffer._items) >= 2)
        item = await in_time(anext(notifications))
        assert item.payload == "before"  # type: ignore[union-attr]
        gap = await in_time(anext(notifications))
        assert isinstance(gap, Gap)
        assert 0 < gap.lasted < 15
        assert gap.reason
        payload: str | type[Gap] = Gap
        while payload is Gap:  # again, if it had listened once more on the old server
            backends.ask("NOTIFY a, 'after'")
            payload = await next_of(notifications)
        assert payload == "after"


@KINDS
async def test_a_connection_that_is_lost_while_the_block_is_entered_is_replaced(
    dsn: str, backends: Backends, kind: type[Any]
) -> None:
    """As when the server restarts at this moment: the time limit is that of the request."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=2, connection_class=kind) as pool,
    ):
        notifications = pool.listen("a", gaps=True)
        await pool.wait()
        proxy.open_way.clear()
        entered = asyncio.ensure_future(notifications.__aenter__())
        await eventually(lambda: pool.stats().leased)
        backends.terminate(*listening_pids(pool))
        proxy.open_way.set()
        await in_time(entered)
        backends.ask("NOTIFY a, 'first'")
        assert await next_of(notifications) == "first"
        await notifications.__aexit__(None, None, None)
        await at_rest(pool)


@KINDS
async def test_a_time_limit_ends_the_replacements_of_lost_connections(
    dsn: str, kind: type[Any]
) -> None:
    """The server ends each session that listens."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, connection_class=kind) as pool:
        await pool.wait()
        asked = proxy.said = []
        cutting = asyncio.ensure_future(cut_at_each(b"LISTEN", asked, proxy))
        with pytest.raises(psycopg.OperationalError):
            await in_time(pool.listen("a", timeout=1.5).__aenter__())
        cutting.cancel()
        assert sum(b"LISTEN" in each for each in asked) > 1
        await at_rest(pool)


async def cut_at_each(word: bytes, said: list[bytes], proxy: Proxy) -> None:
    """Break all connections whenever a client has said this."""
    seen = 0
    while True:
        if (now := sum(word in each for each in said)) > seen:
            seen = now
            proxy.cut()
        await asyncio.sleep(0)


async def test_who_ignores_gaps_goes_on_and_the_log_has_a_warning(
    dsn: str, backends: Backends, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop that knows nothing of gaps gets notifications only."""
    async with (
        AsyncConnectionPool(dsn, min_size=2, name="main") as pool,
        pool.listen("a") as notifications,
    ):
        lost = listening_pid(pool)
        backends.terminate(lost)
        await eventually(lambda: notifications.connected and listening_pid(pool) != lost)
        backends.ask("NOTIFY a, 'after'")
        assert (await in_time(anext(notifications))).payload == "after"
    (warning,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
    assert warning.getMessage().startswith("pool 'main': listening on a again after 0.")
    assert warning.getMessage().endswith("s: notifications sent meanwhile are missed")
    assert vars(warning)["pool_event"] == "listening again"


@KINDS
async def test_who_reads_the_table_after_each_gap_misses_nothing(
    dsn: str, backends: Backends, table: str, kind: type[Any]
) -> None:
    """A gap is reported when the pool listens again, so what was committed before is there."""
    number, known = 300, set[int]()

    async def write(pool: AsyncConnectionPool[Any]) -> None:
        for x in range(number):
            statements = [
                (f"INSERT INTO {table} VALUES (%s)", [x]),
                ("SELECT pg_notify('rows', %s::text)", [x]),
            ]
            await pool.batch(statements)
            if x % 50 == 25:
                # After the loss before, it may have no connection yet.
                await eventually(lambda: listening_pids(pool))
                backends.terminate(listening_pid(pool))

    async with (
        AsyncConnectionPool(dsn, min_size=3, connection_class=kind) as pool,
        pool.listen("rows", gaps=True) as notifications,
    ):
        gaps = 0
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(write(pool))
            async for each in notifications:
                if isinstance(each, Gap):
                    gaps += 1
                    known |= {x for (x,) in await pool.fetchall(f"SELECT x FROM {table}")}
                else:
                    known.add(int(each.payload))
                if known == set(range(number)):
                    break
        assert gaps


@pytest.mark.exhaustive
async def test_a_server_that_stays_away_ends_no_iteration(server: Server, dsn: str) -> None:
    """Requests fail meanwhile, and the listener's too; it asks again and again."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, timeout=0.05, fail_fast_after=0.1) as pool,
        pool.listen("a", gaps=True) as notifications,
    ):
        await server.stop()
        await eventually(lambda: pool.stats().requests_failed)
        with pytest.raises(PoolTimeout):
            await pool.fetchval("SELECT 1")
        await eventually(lambda: pool.stats().requests_failed >= 3)
        assert not notifications.connected
        await server.start()
        assert await next_of(notifications) is Gap
        assert notifications.connected


async def test_a_role_that_may_not_log_in_for_a_while_ends_no_iteration(
    dsn: str, backends: Backends
) -> None:
    """As after a rotation of passwords; on entry such a refusal is an error."""
    role = f"r{uuid4().hex[:8]}"
    backends.ask(f"CREATE ROLE {role} {backends.login}")
    try:
        async with (
            AsyncConnectionPool(make_conninfo(dsn, user=role), min_size=1) as pool,
            pool.listen("a", gaps=True) as notifications,
        ):
            backends.ask(f"ALTER ROLE {role} NOLOGIN")
            backends.terminate(listening_pid(pool))
            await eventually(lambda: pool.stats().connects_failed)
            assert not notifications.connected
            backends.ask(f"ALTER ROLE {role} LOGIN")
            assert await next_of(notifications) is Gap
        backends.ask(f"ALTER ROLE {role} NOLOGIN")
        async with AsyncConnectionPool(make_conninfo(dsn, user=role), min_size=1) as pool:
            with pytest.raises(PoolUnavailable, match="not permitted to log in"):
                async with pool.listen("a"):
                    raise AssertionError("it may not log in")
    finally:
        backends.see_gone(backends.pids())
        backends.ask(f"DROP ROLE {role}")


@pytest.mark.parametrize("kind", few([Connection, psycopg.AsyncConnection]))
async def test_a_silent_network_is_noticed_by_a_ping(dsn: str, kind: type[Any]) -> None:
    """Who only reads gets no error from a network that has gone silent."""
    options: Any = {"ping_interval": 0.05, "ping_timeout": 0.1, "timeout": 1.0}
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, connection_class=kind, **options) as pool,
        pool.listen("a", gaps=True) as notifications,
    ):
        proxy.open_way.clear()
        await eventually(lambda: not notifications.connected)
        proxy.open_way.set()
        gap = await in_time(anext(notifications))
        assert isinstance(gap, Gap)
        assert gap.reason == "TimeoutError: the ping was not answered within 0.1 s"


@KINDS
async def test_notifications_that_come_with_the_answer_to_a_ping_are_delivered(
    dsn: str, backends: Backends, kind: type[Any]
) -> None:
    """And those between two pings; each once, in order."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, ping_interval=0.0005, connection_class=kind) as pool,
        pool.listen("a", gaps=True) as notifications,
    ):
        for number in range(150):
            backends.ask(f"NOTIFY a, '{number}'")
            await asyncio.sleep(0.001 * (number % 3))
        assert [await next_of(notifications) for _ in range(150)] == list(map(str, range(150)))


@KINDS
@pytest.mark.parametrize("how", ["drain", "max_lifetime"])
async def test_a_connection_that_is_replaced_misses_and_doubles_nothing(
    dsn: str, kind: type[Any], how: str
) -> None:
    """The next one listens before the old one is given up."""
    life = 0.2 if how == "max_lifetime" else 3600
    options: Any = {"ping_interval": 0.02, "connection_class": kind, "max_lifetime": life}
    got, pids = [], set[int]()
    async with (
        AsyncConnectionPool(dsn, min_size=3, **options) as pool,
        AsyncConnectionPool(dsn, min_size=1) as sender,
        pool.listen("a", gaps=True) as notifications,
    ):

        async def write() -> None:
            sent = 0
            while len(pids) < 5:
                await sender.batch([("SELECT pg_notify('a', %s::text)", [sent])])
                sent += 1
                pids.add(listening_pid(pool))
                if how == "drain" and sent % 30 == 0:
                    await pool.drain()
            await sender.execute("SELECT pg_notify('a', 'end')")

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            while (each := await next_of(notifications)) != "end":
                got.append(each)
    assert got == list(map(str, range(len(got))))
    assert got


async def test_where_there_is_no_other_connection_a_replacement_is_a_gap(dsn: str) -> None:
    """A pool of one gives its connection up first, and says so."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, ping_interval=0.02) as pool,
        pool.listen("a", gaps=True) as notifications,
    ):
        before = listening_pid(pool)
        await pool.drain()
        gap = await in_time(anext(notifications))
        assert isinstance(gap, Gap)
        assert "listeners hold all of the pool's" in gap.reason
        assert listening_pid(pool) != before
        assert pool.stats().requests_failed == 0


async def test_listeners_keep_their_connections_in_a_pool_that_is_made_too_small(
    dsn: str, backends: Backends
) -> None:
    """What is replaced then is one too many: it has a gap until the pool is large enough again."""
    options: Any = {"ping_interval": 0.02, "timeout": 0.05}
    async with (
        AsyncConnectionPool(dsn, min_size=2, max_size=4, **options) as pool,
        pool.listen("a", gaps=True) as one,
        pool.listen("a", gaps=True) as other,
    ):
        both = (one, other)
        await pool.resize(1, 1)
        await eventually(lambda: pool.stats().size == 2)
        backends.ask("NOTIFY a, 'too small'")
        assert [await next_of(each) for each in both] == ["too small"] * 2
        await pool.drain()
        await eventually(lambda: len(backends.pids()) == 1 and pool.stats().requests_failed)
        await eventually(lambda: sum(each.connected for each in both) == 1)
        first, last = sorted(both, key=lambda each: not each.connected)
        assert await next_of(first) is Gap
        backends.ask("NOTIFY a, 'for one'")
        assert await next_of(first) == "for one"
        await pool.resize(2, 2)
        assert await next_of(last) is Gap
        backends.ask("NOTIFY a, 'for both'")
        assert [await next_of(each) for each in both] == ["for both"] * 2


async def test_a_pool_that_is_made_larger_replaces_without_a_gap(dsn: str) -> None:
    """There is room then for a second connection, which listens before the first is given up."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, ping_interval=0.02) as pool,
        AsyncConnectionPool(dsn, min_size=1) as sender,
        pool.listen("a", gaps=True) as notifications,
    ):
        before = listening_pid(pool)
        await pool.resize(1, 2)
        await sender.execute("SELECT pg_notify('a', 'before')")
        await pool.drain()
        await sender.execute("SELECT pg_notify('a', 'meanwhile')")
        await eventually(lambda: listening_pid(pool) != before)
        await sender.execute("SELECT pg_notify('a', 'after')")
        assert [await next_of(notifications) for _ in range(3)] == ["before", "meanwhile", "after"]


async def test_in_a_busy_pool_a_connection_is_replaced_when_another_is_free(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the old one is read; its loss at that moment is a gap as any other."""
    monkeypatch.setattr("asyncpool._blocks.listener.MOVE_TIMEOUT", 0.01)
    async with (
        AsyncConnectionPool(dsn, min_size=2, ping_interval=0.01) as pool,
        AsyncConnectionPool(dsn, min_size=1) as sender,
        pool.listen("a", gaps=True) as notifications,
    ):
        before = listening_pid(pool)
        async with pool.connection():
            await pool.drain()
            await eventually(lambda: pool.stats().requests_failed > 2)
            await sender.execute("SELECT pg_notify('a', 'meanwhile')")
            assert await next_of(notifications) == "meanwhile"
            assert listening_pid(pool) == before
        await eventually(lambda: listening_pid(pool) != before)
        await sender.execute("SELECT pg_notify('a', 'then')")
        assert await next_of(notifications) == "then"


async def test_a_connection_that_is_lost_while_it_is_replaced_is_a_gap(
    dsn: str, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the old one had not delivered is missed, though the new one listens already."""
    monkeypatch.setattr("asyncpool._blocks.listener.MOVE_TIMEOUT", 15.0)
    async with (
        AsyncConnectionPool(dsn, min_size=2, ping_interval=0.01) as pool,
        pool.listen("a", gaps=True) as notifications,
    ):
        old = listening_pid(pool)
        async with pool.connection():
            await pool.drain()
            await eventually(lambda: pool.stats().waiting)
            backends.terminate(old)
        assert await next_of(notifications) is Gap
        await pool.execute("SELECT pg_notify('a', 'after')")
        assert await next_of(notifications) == "after"
    await eventually(lambda: pool.stats().leased == 0)


async def test_close_ends_a_listener_that_waits_for_the_server(server: Server, dsn: str) -> None:
    """In an outage too."""
    pool = AsyncConnectionPool(dsn, min_size=1, timeout=0.05)
    async with pool.listen("a") as notifications:
        await server.stop()
        await eventually(lambda: not notifications.connected)
        waiting = asyncio.ensure_future(anext(notifications))
        await asyncio.sleep(0)
        await in_time(pool.close())
        with pytest.raises(StopAsyncIteration):
            await in_time(waiting)


async def test_a_bug_in_a_callback_of_the_user_ends_the_iteration_with_its_error(
    dsn: str, backends: Backends
) -> None:
    """What is no failure of the server is raised where it is seen."""
    broken = False

    class Broken(Exception):
        pass

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        pass

    async with AsyncConnectionPool(dsn, min_size=2, check=check) as pool:
        async with pool.listen("a") as notifications:
            real = pool._borrow

            async def borrow(timeout: float | None) -> Any:
                if broken:
                    raise Broken
                return await real(timeout)

            pool._borrow = borrow  # type: ignore[method-assign]
            broken = True
            backends.terminate(listening_pid(pool))
            with pytest.raises(Broken):
                await in_time(anext(notifications))
            with pytest.raises(Broken):
                await in_time(anext(notifications))
        del pool._borrow
        await all_usable(pool)


async def test_a_pools_task_that_somebody_cancels_ends_the_iteration_with_an_error(
    dsn: str,
) -> None:
    """A worker does not wait for ever for what never comes."""
    async with AsyncConnectionPool(dsn, min_size=1, name="main") as pool:
        async with pool.listen("a") as notifications:
            (task,) = (t for t in asyncio.all_tasks() if t.get_name() == "main: listening on a")
            task.cancel()
            with pytest.raises(PoolError, match="was cancelled, but not by its block"):
                await in_time(anext(notifications))
        await all_usable(pool)


async def cancelled_by_task(work: Any, steps: int, *, twice: bool) -> bool:
    """Run work and cancel it after some turns of the loop; return whether it has ended before."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    ended = bool(task.done())
    task.cancel()
    if twice:
        await asyncio.sleep(0)
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return ended


async def cancelled_by_scope(work: Any, steps: int, *, twice: bool) -> bool:
    """As `cancelled_by_task`, by an anyio scope, which cancels at each await."""
    ended = False

    async def inside() -> None:
        nonlocal ended
        with scope:
            await work
            ended = True

    scope = anyio.CancelScope()
    task = asyncio.ensure_future(inside())
    for _ in range(steps):
        await asyncio.sleep(0)
    if not ended:
        scope.cancel()
    await task
    return ended


@pytest.mark.parametrize("cancel", [cancelled_by_task, cancelled_by_scope])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("pool_class", few([AsyncConnectionPool, AsyncNullConnectionPool]))
async def test_a_block_that_is_cancelled_at_any_step_leaves_nothing(
    dsn: str, backends: Backends, cancel: Any, twice: bool, pool_class: Any
) -> None:
    """Its connection listens no more, is in its mode, and is the next borrower's."""

    async def work(pool: AsyncConnectionPool[Any]) -> None:
        async with pool.listen("a", "b") as notifications:
            await pool.execute("SELECT pg_notify('a', 'x')")
            async for _ in notifications:
                break
            await asyncio.sleep(0)

    sizes = {} if pool_class is AsyncNullConnectionPool else {"min_size": 2}
    async with pool_class(dsn, max_size=2, **sizes) as pool:
        steps = 0
        while not await in_time(cancel(work(pool), steps, twice=twice)):
            steps += 1
            # Time for the server to answer at different steps of the loop.
            await eventually(lambda: not pool.stats().leased)
            if pool_class is AsyncConnectionPool:
                await at_rest(pool)
        assert steps > 3
        if pool_class is AsyncConnectionPool:
            await all_usable(pool)
            for conn in [await pool.acquire(), await pool.acquire()]:
                assert not conn.autocommit
                assert await (await conn.execute(CHANNELS)).fetchone() == (None,)
                await conn.rollback()
                await pool.release(conn)
        # The pool's task returns the connection after the end of the block.
        await eventually(lambda: not pool.stats().leased)


def test_a_pool_opens_on_the_next_loop_after_one_that_ended_while_it_listened(
    asyncpool_dsn: str,
) -> None:
    """The blocks of the loop that has ended are no concern of the next one."""
    pool = AsyncConnectionPool(asyncpool_dsn, min_size=1)
    kept: list[Any] = []

    async def first() -> None:
        kept.append(await pool.listen("a").__aenter__())

    async def second() -> None:
        async with pool.listen("a") as notifications:
            assert isinstance(notifications, Notifications)
        await kept[0].__aexit__(None, None, None)
        await pool.close()

    asyncio.run(first())
    asyncio.run(second())


async def test_what_is_notified_while_it_moves_is_psycopgs_own_too(dsn: str) -> None:
    """No item of the move itself is delivered."""
    async with (
        AsyncConnectionPool(dsn, min_size=2, ping_interval=0.01) as pool,
        pool.listen("a", gaps=True) as notifications,
    ):
        before = listening_pid(pool)
        await pool.drain()
        await eventually(lambda: listening_pid(pool) != before)
        await pool.execute("SELECT pg_notify('a', 'x')")
        item = await in_time(anext(notifications))
        assert isinstance(item, Notify)
        assert item.payload == "x"
