"""`pool.listen()`: what is delivered, on which connection, and what is left of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import Notify, sql

from asyncpool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    Connection,
    Gap,
    Notifications,
    PoolClosed,
    PoolDeadlock,
    PoolTimeout,
)
from asyncpool._blocks.buffer import LIMIT
from tests._tools import at_once

from ._tools import BOTH_LOOPS, Backends, OwnPutconn, all_usable, at_rest, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

LOOPS = BOTH_LOOPS

CHANNELS = "SELECT array_agg(c) FROM pg_listening_channels() AS c"


async def payloads(notifications: AsyncIterable[Notify | Gap], number: int) -> list[str]:
    """The payloads of the next notifications, which must be no gaps."""
    found = []
    async with asyncio.timeout(15):
        async for each in notifications:
            assert isinstance(each, Notify), each
            found.append(each.payload)
            if len(found) == number:
                return found
    raise AssertionError(f"the iteration has ended: {found}")


async def test_a_notification_is_psycopgs_own(dsn: str) -> None:
    """It has the channel, the payload and the sender's process."""
    async with (
        AsyncConnectionPool(dsn, min_size=2) as pool,
        pool.listen("orders", "users") as notifications,
    ):
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_notify('users', 'Ann')")
            await conn.execute("SELECT pg_notify('orders', '7')")
            sender = conn.info.backend_pid
        first, second = await in_time(anext(notifications)), await in_time(anext(notifications))
        assert (first, second) == (Notify("users", "Ann", sender), Notify("orders", "7", sender))
        assert isinstance(first, Notify)
        assert notifications.channels == ("orders", "users")
        assert notifications.connected


async def test_what_is_sent_after_the_block_is_entered_is_delivered_in_order(
    dsn: str, backends: Backends
) -> None:
    """The connection listens before the block begins, and each notification is delivered once."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.listen("a") as notifications:
        for number in range(100):
            backends.ask("SELECT pg_notify('a', %s)", str(number))
        assert await payloads(notifications, 100) == [str(number) for number in range(100)]


@pytest.mark.parametrize(
    "name", ["Orders", "two words", 'quo"te', "a; SELECT 1 --'", "%s %(x)s", "ü" * 31, "x" * 63]
)
async def test_a_channel_is_named_exactly(dsn: str, backends: Backends, name: str) -> None:
    """The name is not folded to lower case, and any character may be in it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.listen(name) as notifications:
        backends.ask("SELECT pg_notify(lower(%s) || '_', 'another')", name[:30])
        backends.ask("SELECT pg_notify(%s, 'hers')", name)
        notify = await in_time(anext(notifications))
        assert (notify.channel, notify.payload) == (name, "hers")


@pytest.mark.parametrize(
    ("channels", "error"),
    [
        ((), "TypeError: listen() needs the name of at least one channel"),
        ((["a", "b"],), "TypeError: the name of a channel must be a str, not ['a', 'b']"),
        ((None,), "TypeError: the name of a channel must be a str, not None"),
        (("",), "ValueError: the name of a channel must have 1 to 63 bytes: '' has 0"),
        (("x" * 64,), "ValueError: the name of a channel must have 1 to 63 bytes"),
        (("ü" * 32,), "ValueError: the name of a channel must have 1 to 63 bytes"),
        (("a", "b\0"), "ValueError: the name of a channel must have no NUL"),
        (("\ud800",), "ValueError: the name of a channel must have no NUL and no surrogate"),
    ],
)
def test_a_name_that_is_no_channel_is_refused_at_the_call(
    channels: tuple[Any, ...], error: str
) -> None:
    """PostgreSQL would cut a long name off, and nothing would ever be delivered."""
    pool = AsyncConnectionPool(open=False)
    with pytest.raises((TypeError, ValueError)) as raised:
        pool.listen(*channels)
    assert f"{type(raised.value).__name__}: {raised.value}".startswith(error)


def test_a_time_limit_that_is_none_is_refused_at_the_call() -> None:
    """As elsewhere."""
    pool = AsyncConnectionPool(open=False)
    with pytest.raises(ValueError, match="timeout must be zero or more"):
        pool.listen("a", timeout=-1)


async def test_a_channel_that_is_given_twice_is_one(dsn: str, backends: Backends) -> None:
    """Each notification is delivered once."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.listen("a", "a") as notifications:
        assert notifications.channels == ("a",)
        backends.ask("SELECT pg_notify('a', 'one'), pg_notify('a', 'two')")
        assert await payloads(notifications, 2) == ["one", "two"]


async def test_each_listener_gets_its_own_channels(dsn: str) -> None:
    """Two that listen on the same channel both get what is sent there."""
    async with (
        AsyncConnectionPool(dsn, min_size=3) as pool,
        pool.listen("a", "common") as first,
        pool.listen("b", "common") as second,
    ):
        for channel in ("a", "b", "common"):
            await pool.execute("SELECT pg_notify(%s, %s)", [channel, f"to {channel}"])
        assert await payloads(first, 2) == ["to a", "to common"]
        assert await payloads(second, 2) == ["to b", "to common"]


@pytest.mark.parametrize("kind", [Connection, psycopg.AsyncConnection])
async def test_any_connection_class_can_listen(
    dsn: str, backends: Backends, kind: type[Any]
) -> None:
    """psycopg's own connection too, which the pool does not watch."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, connection_class=kind, ping_interval=0.02) as pool,
        pool.listen("a") as notifications,
    ):
        for number in range(50):
            backends.ask("SELECT pg_notify('a', %s)", str(number))
        assert await payloads(notifications, 50) == [str(number) for number in range(50)]


async def test_a_null_pool_opens_a_connection_to_listen(dsn: str, backends: Backends) -> None:
    """It is closed at the end of the block, as any other."""
    async with AsyncNullConnectionPool(dsn) as pool:
        async with pool.listen("a") as notifications:
            assert pool.stats().size == 1
            await pool.execute("SELECT pg_notify('a', 'x')")
            assert await payloads(notifications, 1) == ["x"]
        await eventually(lambda: not pool.stats().size)


async def test_the_connection_is_one_of_the_pools(dsn: str) -> None:
    """It counts in the size, and nobody else has it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.listen("a"):
            assert (pool.stats().size, pool.stats().leased) == (1, 1)
            held = r"1 of the leased held by pool.listen\(\)"
            with pytest.raises(PoolTimeout, match=held) as raised:
                await pool.acquire(timeout=0.01)
            assert (raised.value.leased, raised.value.longest_lease) == (1, 0.0)
        await all_usable(pool)


async def test_a_listener_waits_for_its_connection_as_any_request(dsn: str) -> None:
    """With its own time limit, and in the queue."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        with pytest.raises(PoolTimeout, match=r"no connection within 0\.01 s"):
            async with pool.listen("a", timeout=0.01):
                raise AssertionError("there was no connection")
        entering = asyncio.create_task(pool.listen("a").__aenter__())
        await eventually(lambda: pool.stats().waiting)
        await pool.release(conn)
        notifications = await in_time(entering)
        assert notifications.connected
        await notifications.__aexit__(None, None, None)


async def test_a_listener_is_no_leak_and_no_use(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """It lasts as long as it is wanted, so its duration says nothing about the others'."""
    async with AsyncConnectionPool(dsn, min_size=2, leak_timeout=0.02) as pool:
        async with pool.listen("a"):
            uses = pool.stats().use.count
            async with pool.connection():
                await eventually(lambda: pool.stats().leaks)  # of this block
            assert pool.stats().use.count == uses + 1
            (listener,) = (each for each in pool.explain().leases if "listening" in each.holder)
            assert listener.holder == f"{pool.name}: listening on a"
            assert "test_a_listener_is_no_leak_and_no_use" in listener.borrowed_at
        await at_rest(pool)
        assert (pool.stats().leaks, pool.stats().use.count) == (1, uses + 1)
    assert "listening on" not in "".join(r.getMessage() for r in caplog.records if "leak" in r.msg)


async def test_those_who_wait_for_one_another_beside_a_listener_are_told(dsn: str) -> None:
    """A listener does not return its connection, so the others are a deadlock."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool, pool.listen("a"):
        with pytest.raises(PoolDeadlock):
            async with pool.connection(), pool.connection():
                raise AssertionError("there was no connection")


@pytest.mark.parametrize("reset", [None, "session"])
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("kind", [Connection, psycopg.AsyncConnection])
async def test_nothing_of_a_listener_is_left_on_its_connection(
    dsn: str, backends: Backends, reset: Any, autocommit: bool, kind: type[Any]
) -> None:
    """The channels, the mode, and the notifications that nobody has read are gone."""
    kwargs = {"autocommit": autocommit}
    async with AsyncConnectionPool(
        dsn, min_size=1, reset=reset, kwargs=kwargs, connection_class=kind
    ) as pool:
        async with pool.listen("a", "b") as notifications:
            backends.ask("SELECT pg_notify('a', 'read'), pg_notify('a', 'left')")
            assert await payloads(notifications, 1) == ["read"]
        async with pool.connection() as conn:
            assert conn.autocommit is autocommit
            assert await (await conn.execute(CHANNELS)).fetchone() == (None,)
            await conn.execute("LISTEN a")
            await conn.commit()
            assert [each async for each in conn.notifies(timeout=0.01)] == []
        assert pool.stats().connects == 1


async def test_what_configure_listens_on_stays(dsn: str, backends: Backends) -> None:
    """Its channels and its handlers are there again after the block, and not the block's."""
    heard: list[str] = []

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_autocommit(True)
        await conn.execute("LISTEN always")
        conn.add_notify_handler(lambda notify: heard.append(notify.payload))

    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        async with pool.listen("a") as notifications:
            backends.ask("SELECT pg_notify('always', 'during'), pg_notify('a', 'x')")
            assert await payloads(notifications, 1) == ["x"]
            assert heard == []
        assert await pool.fetchval(CHANNELS) == ["always"]
        backends.ask("SELECT pg_notify('always', 'after')")
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        assert heard == ["after"]
        assert pool.stats().connects == 1


async def test_what_was_notified_to_an_earlier_borrower_is_not_delivered(
    dsn: str, backends: Backends
) -> None:
    """A LISTEN by hand stays on a connection without a `reset`; a listener gets its own only."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as pool:
        async with pool.connection() as conn:
            await conn.execute("LISTEN a")
            await conn.execute("LISTEN other")
            await conn.execute("SELECT pg_notify('a', 'before')")
        async with pool.listen("a") as notifications:
            backends.ask("SELECT pg_notify('other', 'x'), pg_notify('a', 'during')")
            assert await payloads(notifications, 1) == ["during"]
        assert await pool.fetchval(CHANNELS) == ["other"]


async def test_a_pool_with_a_method_of_its_own_listens(dsn: str) -> None:
    """A listener is past what a subclass has overridden, as `acquire(session=False)`."""
    async with OwnPutconn(dsn, min_size=2) as pool, pool.listen("a") as notifications:
        await pool.execute("SELECT pg_notify('a', 'x')")
        assert await payloads(notifications, 1) == ["x"]


async def test_a_listener_is_no_part_of_a_session(dsn: str, backends: Backends) -> None:
    """It has a connection of its own, whose transaction does not hold notifications up."""
    async with (
        AsyncConnectionPool(dsn, min_size=2) as pool,
        pool.session() as conn,
        pool.listen("a") as notifications,
    ):
        await conn.execute("SELECT 1")
        backends.ask("NOTIFY a, 'x'")
        assert await payloads(notifications, 1) == ["x"]
        assert pool.stats().leased == 2


async def test_the_iteration_goes_on_after_a_break(dsn: str) -> None:
    """What has come meanwhile is delivered then."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool, pool.listen("a") as notifications:
        await pool.execute("SELECT pg_notify('a', '1'), pg_notify('a', '2')")
        async for each in notifications:
            assert each.payload == "1"
            break
        await pool.execute("SELECT pg_notify('a', '3')")
        assert await payloads(notifications, 2) == ["2", "3"]


async def test_a_wait_that_is_cancelled_loses_nothing(dsn: str, backends: Backends) -> None:
    """A task may wait for the next notification with a limit, again and again."""
    got: list[str] = []
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.listen("a") as notifications:

        async def send() -> None:
            for number in range(100):
                await asyncio.to_thread(backends.ask, f"NOTIFY a, '{number}'")
                if not number % 10:
                    await asyncio.sleep(0.01)  # for ten of the limits below

        sending, cut = asyncio.create_task(send()), 0
        async with asyncio.timeout(30):
            while len(got) < 100:
                try:
                    async with asyncio.timeout(0.001):
                        got.append((await anext(notifications)).payload)
                except TimeoutError:
                    cut += 1
        await sending
    assert got == [str(number) for number in range(100)]
    assert cut


async def test_each_notification_goes_to_one_of_the_tasks_that_iterate(dsn: str) -> None:
    """As from a queue; when the block ends, all of them end."""
    got: list[list[str]] = [[], [], []]
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        async with pool.listen("a") as notifications:

            async def consume(mine: list[str]) -> None:
                async for each in notifications:
                    mine.append(each.payload)
                    await asyncio.sleep(0)

            tasks = [asyncio.create_task(consume(mine)) for mine in got]
            await pool.batch([("SELECT pg_notify('a', %s)", [str(n)]) for n in range(90)])
            await eventually(lambda: sum(map(len, got)) == 90)
        await in_time(asyncio.gather(*tasks))
    assert sorted(int(each) for mine in got for each in mine) == list(range(90))
    assert all(got)


async def test_after_its_block_an_iteration_is_over(dsn: str) -> None:
    """What was not read is dropped, and the block is not entered again."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        async with pool.listen("a") as notifications:
            await pool.execute("SELECT pg_notify('a', '1'), pg_notify('a', '2')")
            assert await payloads(notifications, 1) == ["1"]
        assert [each async for each in notifications] == []
        assert not notifications.connected
        with pytest.raises(RuntimeError, match="call listen\\(\\) again"):
            await notifications.__aenter__()


async def test_an_iteration_without_a_block_is_an_error(dsn: str) -> None:
    """Nothing would ever be delivered, as no connection listens."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(RuntimeError, match=r"async with pool\.listen"):
            await anext(pool.listen("a"))


async def test_leaving_the_block_never_suspends(dsn: str) -> None:
    """A task of the pool returns the connection, whatever the leaving task is in."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        block = pool.listen("a")
        await block.__aenter__()
        at_once(block.__aexit__(None, None, None))
        assert await in_time(pool.fetchval(CHANNELS)) is None


async def test_close_ends_the_iteration_without_waiting(dsn: str) -> None:
    """A worker ends as its application does: without an error, and without holding `close` up."""
    pool = AsyncConnectionPool(dsn, min_size=2)
    ended, begun = list[str](), asyncio.Event()

    async def work() -> None:
        async with pool.listen("a") as notifications:
            begun.set()
            async for _ in notifications:
                raise AssertionError("nothing was sent")
            ended.append("loop")
        ended.append("block")

    await pool.open()
    worker = asyncio.create_task(work())
    await in_time(begun.wait())
    await in_time(pool.close(timeout=3600))
    await in_time(worker)
    assert ended == ["loop", "block"]
    with pytest.raises(PoolClosed):
        async with pool.listen("a"):
            raise AssertionError("the pool is closed")


async def test_close_ends_a_listener_that_waits_for_its_first_connection(dsn: str) -> None:
    """As any request: with PoolClosed."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    conn = await pool.acquire()
    entering = asyncio.create_task(pool.listen("a").__aenter__())
    await eventually(lambda: pool.stats().waiting)
    closing = asyncio.create_task(pool.close())
    with pytest.raises(PoolClosed):
        await in_time(entering)
    await pool.release(conn)
    await closing


@pytest.mark.parametrize("reads_on", [True, False])
async def test_a_slow_consumer_holds_up_the_server_and_loses_nothing(
    dsn: str, backends: Backends, reads_on: bool
) -> None:
    """The pool reads a limited number ahead; the rest waits on the way and in the server."""
    number, size = 6000, 4000
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.listen("a") as notifications:
            send = "SELECT pg_notify('a', lpad(n::text, %s)) FROM generate_series(%s::int, %s) n"
            for first in range(0, number, 1000):
                await asyncio.to_thread(backends.ask, send, size, first, first + 999)

            def is_held_up() -> bool:
                query = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s)"
                pids = list(backends.pids())
                return backends.ask(f"{query} AND wait_event = 'ClientWrite'", pids) == [(1,)]

            await eventually(is_held_up)
            assert LIMIT <= len(notifications._listener.buffer._items) < LIMIT + 200
            if reads_on:
                got = await payloads(notifications, number)
                assert list(map(int, got)) == list(range(number))
        await at_rest(pool)
        # A connection on which the server still has much to say is not read to its end.
        assert pool.stats().connects == (1 if reads_on else 2)


async def test_a_statement_of_the_pool_that_notifies_is_committed_when_it_returns(
    dsn: str,
) -> None:
    """Every way to notify: one-shot, batch, block, and NOTIFY with a composed name."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool, pool.listen("My a") as notifications:
        await pool.execute("SELECT pg_notify(%s, %s)", ["My a", "1"])
        await pool.batch([("SELECT pg_notify(%s, %s)", ["My a", "2"])])
        async with pool.transaction() as conn:
            name = sql.Identifier("My a")
            await conn.execute(sql.SQL("NOTIFY {}, '3'").format(name))
        assert await payloads(notifications, 3) == ["1", "2", "3"]


async def test_the_types_are_public(dsn: str) -> None:
    """For annotations."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        block: Notifications[Notify | Gap] = pool.listen("a", gaps=True)
        async with block as notifications:
            assert notifications is block
