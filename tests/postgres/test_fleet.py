"""Fleets on a real server. Each Fleet object is a member, so one process has several of them."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, Fleet, PoolTimeout
from asyncpool.testing import Server, ServerUnsupported, postgres
from tests._tools import few

from ._cli import bouncer
from ._tools import LIMIT, SOON, eventually, in_time, login, run_script


@pytest.fixture(scope="module")
def small(asyncpool_server: Server) -> Iterator[Server]:
    """A server with 30 connections, of which 3 are for superusers."""
    if asyncpool_server.source not in ("binaries", "wheel"):
        pytest.skip(f"{asyncpool_server.source}: a server's settings are not ours to choose")
    with asyncio.Runner() as runner:
        server = postgres(max_connections=30, source=asyncpool_server.source)
        running = runner.run(server.__aenter__())
        try:
            yield running
        finally:
            runner.run(server.__aexit__(None, None, None))


@asynccontextmanager
async def role(server: Server, options: str = "") -> AsyncIterator[str]:
    """A role that is no superuser; its connection string."""
    name = f"shop_{uuid4().hex[:8]}"
    await run(server, f"CREATE ROLE {name} {login(server.dsn)} {options}")
    try:
        yield make_conninfo(server.dsn, user=name)
    finally:
        await run(server, f"DROP ROLE {name}")


async def run(server: Server, statement: str) -> None:
    """Run a statement as the superuser, on a connection of its own."""
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
        await conn.execute(statement)


class Spy:
    """A superuser's session that counts the others."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = conn

    async def names(self) -> list[str]:
        """Return the application_name of every other client."""
        cur = await self._conn.execute(
            "SELECT application_name FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return [name for (name,) in await cur.fetchall()]

    async def count(self) -> int:
        """Return how many there are."""
        return len(await self.names())

    async def alone(self) -> None:
        """Wait until there is none."""
        await self.sees(lambda: 0)

    async def sees(self, number: Callable[[], int]) -> None:
        """Wait until there are so many."""
        deadline = time.monotonic() + LIMIT
        while len(names := await self.names()) != number():
            assert time.monotonic() < deadline, names
            await asyncio.sleep(0.01)


@asynccontextmanager
async def spying(server: Server) -> AsyncIterator[Spy]:
    """A spy, once the clients of earlier tests are gone."""
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
        spy = Spy(conn)
        await spy.alone()
        yield spy


class Member:
    """A process of the fleet: its pool, and tasks that use it."""

    def __init__(self, dsn: str, name: str, **options: Any) -> None:
        fleet = {each: options.pop(each) for each in ("reserve", "weight") if each in options}
        self.fleet = Fleet(name, **fleet)
        self.pool = AsyncConnectionPool(
            dsn, budget=self.fleet, **{"min_size": 0, "max_size": 20, "timeout": LIMIT} | options
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def size(self) -> int:
        """The connections of the pool."""
        return self.pool.stats().size

    def load(self, number: int, use: float = 0.01) -> None:
        """Have the pool used by a number of tasks from now on."""
        self._tasks += [asyncio.create_task(self._use(use)) for _ in range(number)]

    async def rest(self) -> None:
        """End the load."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _use(self, seconds: float) -> None:
        while True:
            async with self.pool.connection() as conn:
                await conn.execute("SELECT 1")
                await asyncio.sleep(seconds)


@pytest.fixture
async def join() -> AsyncIterator[Callable[..., Awaitable[Member]]]:
    """Makes members, whose pools are open; closes them."""
    members: list[Member] = []
    name = f"f{uuid4().hex[:10]}"

    async def join(dsn: str, **options: Any) -> Member:
        members.append(Member(dsn, name, **options))
        await members[-1].pool.open()
        return members[-1]

    yield join
    for member in members:
        await member.rest()
    await asyncio.gather(*(member.pool.close() for member in members))
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def settled(*members: Member, sizes: list[int] | None = None) -> None:
    """Wait until the members have these sizes, or sizes that differ by one at most."""

    def fair() -> bool:
        found = [member.size for member in members]
        return found == sizes if sizes else max(found) - min(found) <= 1 and min(found) > 1

    await eventually(fair)


@pytest.mark.exhaustive
async def test_one_member_alone_gets_all_but_the_reserve(small: Server, join: Any) -> None:
    """Nothing of the fleet is in its way."""
    async with spying(small) as spy, role(small) as dsn:
        alone = await join(dsn, max_size=50)
        started = time.monotonic()
        conns = await asyncio.gather(*(alone.pool.acquire() for _ in range(23)))
        assert time.monotonic() - started < SOON
        with pytest.raises(PoolTimeout):
            await alone.pool.acquire(timeout=0.5)
        assert await spy.count() == 23
        now = alone.fleet.stats()
        assert (now.members, now.limit, now.places, now.others, now.free) == (1, 23, 26, 1, 3)
        assert "23 of 23 connections, fair share 23; members: 1, using 23 of 26 places" in str(
            alone.pool.explain()
        )
        for conn in conns:
            await alone.pool.release(conn)


@pytest.mark.parametrize("busy", few([True, False]))
async def test_late_newcomers_are_served_within_two_seconds(
    small: Server, join: Any, busy: bool
) -> None:
    """As in a rolling deploy: three have all places, busy or idle, and three more come."""
    async with spying(small) as spy, role(small) as dsn:
        old = [await join(dsn, max_size=10) for _ in range(3)]
        for each in old:
            each.load(15)
        await eventually(lambda: sum(each.size for each in old) >= 21)
        if not busy:
            for each in old:
                await each.rest()
        waits, new = [], []
        for _ in range(3):
            started = time.monotonic()
            new.append(await join(dsn, max_size=10))
            assert await in_time(new[-1].pool.fetchval("SELECT 1")) == 1
            waits.append(time.monotonic() - started)
            new[-1].load(15)
        assert max(waits) < SOON
        if busy:
            await settled(*old, *new)
            parts = [each.size for each in (*old, *new)]
            assert sum(parts) ** 2 / (len(parts) * sum(part**2 for part in parts)) >= 0.95
        else:
            await eventually(lambda: min(each.size for each in new) >= 6)
        assert await spy.count() <= 27


async def test_pool_wait_ends_with_what_a_full_server_leaves(small: Server, join: Any) -> None:
    """A `min_size` is not kept at the expense of the requests of others."""
    async with spying(small), role(small) as dsn:
        busy = await join(dsn, max_size=30)
        busy.load(40)
        await eventually(lambda: busy.size >= 23)
        late = await join(dsn, min_size=10)
        await in_time(late.pool.wait(timeout=LIMIT), 2 * SOON)
        assert 1 <= late.size < 10


async def test_cancelled_requests_and_closing_pools_leave_a_working_fleet(
    small: Server, join: Any
) -> None:
    """Requests end at any moment, pools come and go; the others go on."""
    async with spying(small) as spy, role(small) as dsn:
        stays = await join(dsn)
        stays.load(10)
        for number in range(15):
            comes = await join(dsn, min_size=number % 3)
            uses = [asyncio.create_task(comes.pool.fetchval("SELECT 1")) for _ in range(20)]
            await asyncio.sleep(number / 150)
            for task in uses[::2]:
                task.cancel()
            await asyncio.gather(*uses[::2], return_exceptions=True)
            closing = asyncio.create_task(comes.pool.close())
            await asyncio.gather(closing, *uses, return_exceptions=True)
            assert (comes.fleet.size, comes.fleet.pools) == (0, 0)
        assert await in_time(stays.pool.fetchval("SELECT 1")) == 1
        await eventually(lambda: stays.fleet.stats().members == 1)
        await stays.rest()
        await spy.sees(lambda: stays.size)


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_behind_pgbouncer_only_the_pools_own_sizes_hold(
    dsn: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The sessions are not the fleet's there; the log says so once."""
    with bouncer(dsn, pool_mode=mode) as through:
        fleet = Fleet("bounced")
        async with AsyncConnectionPool(through, min_size=0, max_size=6, budget=fleet) as pool:
            conns = await in_time(asyncio.gather(*(pool.acquire() for _ in range(6))))
            for conn in conns:
                await pool.release(conn)
            assert (fleet.stats().sees, fleet.stats().limit) == (False, None)
            assert "unlimited connections, as the other processes cannot be seen: a pooler" in str(
                pool.explain()
            )
            await pool.drain()
            assert await in_time(pool.fetchval("SELECT 1")) == 1
    assert len([each for each in caplog.records if "cannot be seen" in each.message]) == 1


async def test_parts_are_by_weight(small: Server, join: Any) -> None:
    """Who counts twice gets twice as many connections."""
    async with spying(small), role(small) as dsn:
        heavy, light = await join(dsn, weight=2), await join(dsn)
        heavy.load(30)
        light.load(30)
        await settled(heavy, light, sizes=[15, 8])


@pytest.mark.exhaustive
async def test_what_one_does_not_need_another_has(small: Server, join: Any) -> None:
    """It is taken back when its owner needs it."""
    async with spying(small), role(small) as dsn:
        busy, quiet = await join(dsn), await join(dsn)
        await quiet.pool.fetchval("SELECT 1")
        busy.load(30)
        await eventually(lambda: busy.size >= 20)
        started = time.monotonic()
        quiet.load(30)
        await eventually(lambda: quiet.size >= 11)
        assert time.monotonic() - started < 2 * SOON


@pytest.mark.parametrize("reset", ["session", "discard", "callable"])
@pytest.mark.exhaustive
async def test_a_reset_does_not_remove_the_mark(small: Server, join: Any, reset: Any) -> None:
    """RESET ALL is a part of it."""

    async def clean(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_autocommit(True)
        await conn.execute("RESET ALL")
        await conn.set_autocommit(False)

    given = clean if reset == "callable" else reset
    async with spying(small) as spy, role(small) as dsn:
        members = [await join(dsn, reset=given, kwargs={"application_name": "x"}) for _ in range(2)]
        for each in members:
            each.load(30)
        await settled(*members)
        await asyncio.sleep(2)  # so that they look several times
        assert all(each.fleet.stats().members == 2 for each in members)
        await settled(*members)
        names = await spy.names()
        assert all(name.startswith("x fleet=") for name in names if name != "")
        looked = {name.split("/")[1] for name in names if name.count("/") == 5}
        assert looked == {each.fleet.stats().member for each in members}


@pytest.mark.parametrize("way", ["conninfo", "kwargs", "callable", "PGAPPNAME"])
async def test_the_users_application_name_is_kept(
    small: Server, join: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """In front of the mark, from wherever psycopg takes it."""
    monkeypatch.delenv("PGAPPNAME", raising=False)
    options: dict[str, Any] = {}
    dsn = small.dsn
    if way == "conninfo":
        dsn = make_conninfo(dsn, application_name="the shop")
    elif way == "kwargs":
        options["kwargs"] = {"application_name": "the shop"}
    elif way == "callable":
        options["kwargs"] = lambda: {"application_name": "the shop"}
    async with spying(small) as spy:
        if way == "PGAPPNAME":
            monkeypatch.setenv("PGAPPNAME", "the shop")
        member = await join(dsn, min_size=2, **options)
        await member.pool.wait()
        await eventually(lambda: member.fleet.stats().looks)
        for name in await spy.names():
            assert name.startswith(f"the shop fleet={member.fleet.name}/")
        assert await member.pool.fetchval("SHOW application_name") in await spy.names()


async def test_a_server_that_comes_back_with_fewer_places(small: Server, join: Any) -> None:
    """The members see the new max_connections, and share what there is."""
    async with role(small) as dsn:
        members = [await join(dsn) for _ in range(3)]
        for each in members:
            each.load(30)
        await eventually(lambda: sum(each.size for each in members) >= 21)
        await run(small, "ALTER SYSTEM SET max_connections = 20")
        for each in members:
            await each.rest()
        try:
            await small.restart()
            for each in members:
                each.load(30)
            await eventually(lambda: all(each.fleet.stats().places <= 17 for each in members))
            await eventually(lambda: sum(each.size for each in members) <= 17)
            await settled(*members)
        finally:
            for each in members:
                await each.rest()
            await run(small, "ALTER SYSTEM RESET max_connections")
            await small.restart()


async def test_backends_of_other_roles_are_seen_without_any_right(small: Server, join: Any) -> None:
    """They are others, also where they have the mark of the fleet."""
    async with spying(small), role(small) as dsn, role(small) as other:
        others = [await psycopg.AsyncConnection.connect(small.dsn) for _ in range(4)]
        try:
            mine, theirs = await join(dsn, min_size=1), await join(other, min_size=2)
            await eventually(lambda: theirs.size == 2)
            await eventually(lambda: mine.fleet.stats().others == 7)  # with the spy
            assert mine.fleet.stats().members == 1
        finally:
            for conn in others:
                await conn.close()


async def test_the_limit_of_the_role_is_kept_to(small: Server, join: Any) -> None:
    """It is shared as well."""
    async with spying(small), role(small, "CONNECTION LIMIT 13") as dsn:
        members = [await join(dsn) for _ in range(2)]
        for each in members:
            each.load(30)
        await settled(*members, sizes=[5, 5])


async def test_the_limit_of_the_database_is_kept_to(small: Server, join: Any) -> None:
    """It is shared as well."""
    async with spying(small), role(small) as dsn:
        name = f"shop_{uuid4().hex[:8]}"
        await run(small, f"CREATE DATABASE {name} CONNECTION LIMIT 9")
        try:
            members = [await join(make_conninfo(dsn, dbname=name)) for _ in range(2)]
            for each in members:
                each.load(30)
            await settled(*members, sizes=[3, 3])
            for each in members:
                await each.rest()
                await each.pool.close()
        finally:
            await run(small, f"DROP DATABASE {name}")


async def test_it_works_on_a_standby(small: Server, join: Any) -> None:
    """Nothing is written."""
    try:
        async with role(small) as dsn, small.standby() as standby:
            async with await psycopg.AsyncConnection.connect(standby.dsn) as conn:
                port = conn.info.port
            members = [await join(make_conninfo(dsn, port=port)) for _ in range(2)]
            for each in members:
                each.load(30)
            # Their sizes may be equal before they have seen each other.
            await eventually(lambda: all(each.fleet.stats().members == 2 for each in members))
            await settled(*members)
            for each in members:
                await each.rest()
                await each.pool.close()
    except ServerUnsupported as error:
        pytest.skip(str(error))


async def test_two_pools_of_a_process_are_one_member(small: Server) -> None:
    """They share its part, in the order of their requests."""
    async with spying(small):
        fleet = Fleet("two")
        pools = [
            AsyncConnectionPool(small.dsn, min_size=2, max_size=5, budget=fleet) for _ in range(2)
        ]
        for pool in pools:
            await pool.open(wait=True)
        await eventually(lambda: fleet.stats().looks > 1 and fleet.stats().size == 4)
        assert (fleet.stats().members, fleet.pools) == (1, 2)
        await pools[0].close()
        looks = fleet.stats().looks
        await eventually(lambda: fleet.stats().looks > looks)
        await pools[1].close()
        assert (fleet.size, fleet.pools, fleet.stats().limit) == (0, 0, 1)


async def test_close_leaves_nothing(small: Server) -> None:
    """Neither task nor timer nor connection, also in the midst of a look."""
    async with spying(small) as spy:
        for pause in (0.0, 0.001, 0.01, 0.02, 0.05, 0.3):
            async with AsyncConnectionPool(small.dsn, min_size=2, budget=Fleet("end")):
                await asyncio.sleep(pause)
            loop: Any = asyncio.get_running_loop()
            left = [repr(each) for each in loop._scheduled if not each.cancelled()]
            assert not [each for each in left if "Semaphore" not in each]  # of connects just made
            assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            await spy.alone()


async def test_a_dropped_pool_ends_the_looks(small: Server) -> None:
    """The fleet does not keep it alive."""
    async with spying(small) as spy:
        fleet = Fleet("drop")
        pool = AsyncConnectionPool(small.dsn, min_size=1, budget=fleet)
        await pool.open(wait=True)
        await eventually(lambda: fleet.stats().looks)
        with pytest.warns(ResourceWarning):  # noqa: PT031 - both drop it
            del pool
            gc.collect()
        assert (fleet.size, fleet.pools) == (0, 0)
        await spy.alone()


def test_a_fleet_goes_on_on_another_event_loop(small: Server) -> None:
    """The pool of the first one was closed there."""
    fleet = Fleet("loops")

    async def use() -> int:
        async with AsyncConnectionPool(small.dsn, min_size=1, budget=fleet) as pool:
            await pool.wait()
            before = fleet.stats().looks
            await eventually(lambda: fleet.stats().looks > before + 1)
            return fleet.stats().members

    assert [asyncio.run(use()), asyncio.run(use())] == [1, 1]


@pytest.mark.exhaustive
async def test_looks_do_not_keep_idle_connections(small: Server, join: Any) -> None:
    """They are no use: what was not used for `max_idle` is closed."""
    async with spying(small):
        member = await join(small.dsn, max_idle=1.5)
        await member.pool.fetchval("SELECT 1")
        await eventually(lambda: member.fleet.stats().looks >= 2)
        await eventually(lambda: member.size == 0)
        assert member.pool.stats().requests == 1


async def test_looks_go_on_while_no_connection_is_ever_idle(small: Server, join: Any) -> None:
    """One that is returned is looked on before the next request has it."""
    async with spying(small):
        member = await join(small.dsn, max_size=2)
        member.load(10)
        await eventually(lambda: member.fleet.stats().looks >= 3)
        await eventually(lambda: member.pool.stats().waiting == 8)


@pytest.mark.exhaustive
async def test_while_all_are_in_use_for_long_one_more_may_be_opened(
    small: Server, join: Any
) -> None:
    """The claim of a member that cannot look ends; its next connection looks first."""
    async with spying(small):
        member = await join(small.dsn)
        first = await member.pool.acquire()
        await asyncio.sleep(3.5)
        assert await in_time(member.pool.fetchval("SELECT 1"), SOON) == 1
        await member.pool.release(first)


async def test_a_null_pool_is_a_member_too(small: Server) -> None:
    """Its connections are opened for each request, as far as the limit allows."""
    async with spying(small):
        fleet = Fleet("null")
        async with AsyncNullConnectionPool(small.dsn, budget=fleet) as pool:
            for _ in range(3):
                assert await in_time(pool.fetchval("SELECT 1")) == 1
            assert await in_time(asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(5))))
            assert fleet.stats().looks


async def test_a_role_that_may_not_look(
    small: Server, join: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool's own sizes limit it then; the log says so once, and `explain()` always."""
    revoke = "REVOKE EXECUTE ON FUNCTION pg_stat_get_activity(int) FROM PUBLIC"
    async with spying(small), role(small) as dsn:
        await run(small, revoke)
        try:
            member = await join(dsn, max_size=10)
            conns = await asyncio.gather(*(member.pool.acquire() for _ in range(10)))
            for each in conns:
                await member.pool.release(each)
            now = member.fleet.stats()
            assert (now.sees, now.limit) == (False, None)
            assert "permission denied" in (now.error or "")
            assert "cannot be seen: InsufficientPrivilege" in str(member.pool.explain())
            said = [each for each in caplog.records if "cannot be seen" in each.message]
            assert len(said) == 1
        finally:
            await run(small, revoke.replace("REVOKE", "GRANT").replace("FROM", "TO"))


@pytest.mark.exhaustive
async def test_a_claim_ends_also_while_a_look_hangs(
    small: Server, join: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others do not believe in it for longer. Then one connection may be opened at a time."""
    member = await join(small.dsn, max_size=20)
    held = [await member.pool.acquire() for _ in range(3)]
    await eventually(lambda: member.fleet.stats().limit > 10)
    hangs = asyncio.Event()

    async def look(*_: Any) -> None:
        hangs.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("asyncpool.fleet.look", look)
    await member.pool.release(held.pop())
    await in_time(hangs.wait())
    await eventually(lambda: (member.fleet.stats().last_look or 0.0) > 3.2)
    more = [asyncio.create_task(member.pool.acquire(timeout=1.0)) for _ in range(5)]
    await asyncio.wait(more)
    got = [each.result() for each in more if each.exception() is None]
    assert len(got) <= 2, "one that was idle, and one more"
    for conn in (*held, *got):
        await member.pool.release(conn)
    monkeypatch.undo()


@pytest.mark.exhaustive
async def test_a_look_that_fails_later_only_ends_the_claim(
    small: Server, join: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All members may have the same trouble: without limits they would use up the server."""
    monkeypatch.setattr("asyncpool._fleet.pace.INTERVAL", 0.1)
    member = await join(small.dsn, max_size=20)
    assert await member.pool.fetchval("SELECT 1") == 1
    await eventually(lambda: member.fleet.stats().looks > 1)
    with monkeypatch.context() as patch:
        patch.setattr("asyncpool._fleet.look.LOOK", "SELECT 1 / 0")
        await eventually(lambda: "DivisionByZero" in (member.fleet.stats().error or ""))
        await eventually(lambda: (member.fleet.stats().last_look or 0.0) > 3.2)
        assert member.fleet.stats().sees
        assert (member.fleet.stats().limit or 99) <= 2
    await eventually(lambda: member.fleet.stats().error is None)


async def test_a_look_that_fails_harms_nobody(
    small: Server, join: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If none has ever succeeded, the pools' own sizes hold, until one does."""
    async with spying(small):
        monkeypatch.setattr("asyncpool._fleet.pace.INTERVAL", 0.1)
        monkeypatch.setattr("asyncpool._fleet.pace.BLIND_INTERVAL", 0.1)
        with monkeypatch.context() as patch:
            patch.setattr("asyncpool._fleet.look.LOOK", "SELECT 1 / 0")
            member = await join(small.dsn, max_size=5)
            assert await in_time(member.pool.fetchval("SELECT 1")) == 1
            assert "DivisionByZero" in (member.fleet.stats().error or "")
            await eventually(lambda: not member.fleet.stats().sees)
            conns = await in_time(asyncio.gather(*(member.pool.acquire() for _ in range(5))))
            assert (member.fleet.stats().sees, member.fleet.stats().limit) == (False, None)
            for conn in conns:
                await member.pool.release(conn)
        await eventually(lambda: member.fleet.stats().sees)
        assert member.fleet.stats().error is None
        assert member.pool.stats().lost == 0
    said = [each.levelname for each in caplog.records if "can" in each.message]
    assert said == ["WARNING", "WARNING"]


FORKS = """
import asyncio, os, sys
from asyncpool import AsyncConnectionPool, Fleet

fleet = Fleet("forks")
pool = AsyncConnectionPool(sys.argv[1], min_size=2, max_size=4, budget=fleet)

async def see(members):
    async with asyncio.timeout(10):
        await pool.fetchval("SELECT 1")
        while fleet.stats().members != members or fleet.stats().size != 2:
            await asyncio.sleep(0.01)

def child(parent):
    assert fleet.stats().member != parent
    assert (fleet.size, fleet.pools, fleet.stats().limit) == (0, 0, 1)
    asyncio.run(work())

async def work():
    async with pool:
        await see(2)

async def main():
    name = fleet.stats().member
    async with pool:
        await see(1)
        if not (pid := os.fork()):
            asyncio._set_running_loop(None)
            status = 1
            try:
                child(name)
                status = 0
            finally:
                os._exit(status)
        ended = await asyncio.to_thread(os.waitpid, pid, 0)
        assert ended == (pid, 0), ended
        assert fleet.stats().member == name
        await see(1)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_child_is_another_member(small: Server) -> None:
    """It counts for itself, and the parent is not disturbed."""
    async with spying(small):
        await run_script(FORKS, small.dsn)
