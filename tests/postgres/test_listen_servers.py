"""`pool.listen()` where the pool meets more than one server: standbys, failovers, PgBouncer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool, Connection, Gap
from tests._tools import few

from ._cli import bouncer
from ._tools import Backends, all_usable, at_rest, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpool.testing import Server

KINDS = pytest.mark.parametrize("kind", few([Connection, psycopg.AsyncConnection]))
REFUSED = psycopg.errors.ReadOnlySqlTransaction


@asynccontextmanager
async def standby_of(server: Server) -> AsyncIterator[Server]:
    """A streaming standby of the server, for a block."""
    if server.source == "testcontainers":
        pytest.skip("no standby in a container")
    async with server.standby() as replica:
        yield replica


def both(first: Server, second: Server, application: str, **options: Any) -> str:
    """Return a connection string with the two servers as hosts, in this order."""
    ports = [str(conninfo_to_dict(each.dsn)["port"]) for each in (first, second)]
    return make_conninfo(
        first.dsn,
        host="127.0.0.1,127.0.0.1",
        port=",".join(ports),
        application_name=application,
        **options,
    )


@KINDS
async def test_a_standby_refuses_to_listen_until_it_is_promoted(
    server: Server, application: str, kind: type[Any]
) -> None:
    """The server's error is raised on entry, and no connection is lost by it.

    A connection from before the promotion listens after it.
    """
    async with standby_of(server) as replica:
        dsn = make_conninfo(replica.dsn, application_name=application)
        async with AsyncConnectionPool(dsn, min_size=2, connection_class=kind) as pool:
            await all_usable(pool)
            pids = Backends(replica.dsn, application).pids()
            for _ in range(3):
                with pytest.raises(REFUSED, match="LISTEN"):
                    async with pool.listen("a"):
                        raise AssertionError("a standby has no notifications")
            assert (await at_rest(pool)).idle == 2
            assert Backends(replica.dsn, application).pids() == pids
            await replica.promote()
            async with pool.listen("a") as notifications:
                await pool.execute("SELECT pg_notify('a', 'promoted')")
                assert (await in_time(anext(notifications))).payload == "promoted"


@KINDS
@pytest.mark.parametrize("wanted", ["any", "read-write"])
@pytest.mark.exhaustive
async def test_after_a_failover_the_listener_is_on_the_promoted_standby(
    server: Server, application: str, kind: type[Any], wanted: str
) -> None:
    """The iteration goes on after a gap, also where the pool finds the standby too early.

    There are two gaps if the pool's other connection still listens on the server that shuts down.
    """
    async with standby_of(server) as replica:
        dsn = both(server, replica, application, target_session_attrs=wanted)
        async with (
            AsyncConnectionPool(dsn, min_size=2, connection_class=kind) as pool,
            pool.listen("a", gaps=True) as notifications,
        ):
            await pool.execute("SELECT pg_notify('a', 'before')")
            assert (await in_time(anext(notifications))).payload == "before"  # type: ignore[union-attr]
            await server.stop()
            await eventually(lambda: not notifications.connected)
            if wanted == "any":
                replicas = Backends(replica.dsn, application)
                await eventually(replicas.pids)
            await replica.promote()
            found = await in_time(anext(notifications))
            assert isinstance(found, Gap)
            while isinstance(found, Gap):
                await pool.execute("SELECT pg_notify('a', 'after')")
                found = await in_time(anext(notifications))
            assert found.payload == "after"


@KINDS
@pytest.mark.exhaustive
async def test_a_listener_that_a_standby_refuses_asks_for_another_connection(
    server: Server, application: str, kind: type[Any]
) -> None:
    """It leaves the standby once the primary is back, whatever else the pool has there."""
    async with standby_of(server) as replica:
        dsn = both(server, replica, application)
        async with (
            AsyncConnectionPool(dsn, min_size=2, connection_class=kind) as pool,
            pool.listen("a", gaps=True) as notifications,
        ):
            await server.stop()
            replicas = Backends(replica.dsn, application)
            await eventually(lambda: len(replicas.pids()) == 2)
            await server.start()
            found = await in_time(anext(notifications))
            assert isinstance(found, Gap)
            while isinstance(found, Gap):
                Backends(server.dsn, application).ask("NOTIFY a, 'after'")
                found = await in_time(anext(notifications))
            assert found.payload == "after"


@KINDS
async def test_behind_a_pooler_in_session_mode_listening_works(
    dsn: str, asyncpool_dsn: str, application: str, backends: Backends, kind: type[Any]
) -> None:
    """Notifications are delivered in order, and nothing stays on the session."""
    with bouncer(asyncpool_dsn, pool_mode="session", server_reset_query="") as through:
        there = make_conninfo(through, application_name=application)
        options: Any = {"connection_class": kind, "ping_interval": 0.02}
        async with AsyncConnectionPool(there, min_size=2, **options) as pool:
            async with pool.listen("a", gaps=True) as notifications:
                for number in range(5):
                    backends.ask("SELECT pg_notify('a', %s)", str(number))
                await pool.drain()
                for number in range(5, 10):
                    await pool.execute("SELECT pg_notify('a', %s)", [str(number)])
                got = [await in_time(anext(notifications)) for _ in range(10)]
                assert [each.payload for each in got] == list(map(str, range(10)))  # type: ignore[union-attr]
            await at_rest(pool)
            assert await pool.fetchall("SELECT pg_listening_channels()") == []
    await eventually(lambda: not backends.pids())


@KINDS
@pytest.mark.parametrize("sessions", few([1, 5]))
async def test_behind_a_pooler_in_transaction_mode_listening_is_refused(
    asyncpool_dsn: str, application: str, backends: Backends, kind: type[Any], sessions: int
) -> None:
    """On entry, since the pool's other connection gets the session; nothing stays on that."""
    with bouncer(asyncpool_dsn, pool_mode="transaction", default_pool_size=sessions) as through:
        there = make_conninfo(through, application_name=application)
        options: Any = {"connection_class": kind, "kwargs": {"prepare_threshold": None}}
        async with AsyncConnectionPool(there, min_size=2, max_size=2, **options) as pool:
            for _ in range(3):
                with pytest.raises(psycopg.NotSupportedError, match="connect this pool to the ser"):
                    async with pool.listen("a"):
                        raise AssertionError("another client gets the notifications")
                assert (await at_rest(pool)).idle == 2
                assert await pool.fetchall("SELECT pg_listening_channels()") == []
    await eventually(lambda: not backends.pids())


async def test_a_pooler_that_undoes_listen_after_each_transaction_is_seen_by_one_connection(
    asyncpool_dsn: str, application: str
) -> None:
    """A pool of one has no second connection to see it by."""
    settings: dict[str, Any] = {"pool_mode": "transaction", "server_reset_query_always": 1}
    with bouncer(asyncpool_dsn, **settings) as through:
        there = make_conninfo(through, application_name=application)
        async with AsyncConnectionPool(there, min_size=1, max_size=1) as pool:
            with pytest.raises(psycopg.NotSupportedError):
                async with pool.listen("a"):
                    raise AssertionError("it listens no more")
            assert (await at_rest(pool)).idle == 1


async def test_a_pool_of_one_does_not_see_a_pooler_in_transaction_mode(
    asyncpool_dsn: str, application: str, backends: Backends
) -> None:
    """The block begins without an error, but the session that listens is another client's next.

    Where PgBouncer has one session, each notification goes to the client that sends it.
    """
    with bouncer(asyncpool_dsn, pool_mode="transaction", default_pool_size=1) as through:
        there = make_conninfo(through, application_name=application)
        kwargs: Any = {"prepare_threshold": None, "autocommit": True}
        async with (
            AsyncConnectionPool(there, min_size=1, max_size=1, kwargs=kwargs) as pool,
            await psycopg.AsyncConnection.connect(there, **kwargs) as other,
        ):
            async with pool.listen("a") as notifications:
                await other.execute("SELECT pg_notify('a', '')")
                received = [each async for each in other.notifies(timeout=10, stop_after=1)]
                assert [each.channel for each in received] == ["a"]
                assert not notifications._listener.buffer._items
            assert (await at_rest(pool)).idle == 1
    await eventually(lambda: not backends.pids())


async def test_listeners_behind_a_pooler_in_session_mode_may_hold_all_connections(
    asyncpool_dsn: str, application: str
) -> None:
    """Whether sessions are shared is asked with a connection that is there, or not at all."""
    with bouncer(asyncpool_dsn, pool_mode="session") as through:
        there = make_conninfo(through, application_name=application)
        async with AsyncConnectionPool(there, min_size=1, max_size=2) as pool:
            async with pool.listen("a") as first, pool.listen("a") as second:
                assert pool.stats().leased == 2
                async with await psycopg.AsyncConnection.connect(there, autocommit=True) as other:
                    await other.execute("SELECT pg_notify('a', 'both')")
                for each in (first, second):
                    assert (await in_time(anext(each))).payload == "both"
            assert (await at_rest(pool)).idle == 2


async def test_a_block_that_is_cancelled_while_the_mode_is_asked_for_leaves_nothing(
    asyncpool_dsn: str, application: str
) -> None:
    """Both connections are returned, at whichever step the entry is cancelled."""
    with bouncer(asyncpool_dsn, pool_mode="session", server_reset_query="") as through:
        there = make_conninfo(through, application_name=application)

        async def work() -> None:
            async with pool.listen("a"):
                pass

        async with AsyncConnectionPool(there, min_size=2, max_size=2) as pool:
            await all_usable(pool)
            steps, ended = 0, False
            while not ended:
                task = asyncio.create_task(work())
                for _ in range(steps):
                    await asyncio.sleep(0)
                ended = task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert (await at_rest(pool)).idle == 2
                steps += 1 + steps // 8
            assert await pool.fetchall("SELECT pg_listening_channels()") == []
