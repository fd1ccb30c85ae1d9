"""A pool and its event loop: another loop, an ended loop, eager tasks, a fork."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import sys
from typing import Any

import pytest

from asyncpool._core.background import force_close
from asyncpool._core.lease import NO_LEASE
from asyncpool._core.pool import Core
from asyncpool._core.runtime import clock_of
from asyncpool.errors import (
    PoolClosed,
    PoolWrongLoop,
)
from tests._tools import acquire_now
from tests.fake import FakeConn
from tests.unit._tools import (
    Driver,
    VirtualLoop,
    check_alive,
    fails,
    make_core,
    never,
    now,
    ok,
    running,
    settle,
    slow,
    start,
    take,
    timers,
    use,
    virtual_time,
)


class TestLoops:
    @virtual_time
    async def test_a_pool_that_is_not_open_raises_wrong_loop(self) -> None:
        """The pool is attached to no event loop yet."""
        core = make_core(Driver())
        assert acquire_now(core) is None
        with pytest.raises(PoolWrongLoop, match="'test' is not open"):
            await core.acquire(None)

    @virtual_time
    async def test_a_pool_is_usable_from_open_to_close(self) -> None:
        """This holds on its own event loop only."""
        core = make_core(Driver())
        found = [(core.home is not None, core.usable, core.closed)]
        core.open()
        found.append((core.home is not None, core.usable, core.closed))
        await core.close(0)
        found.append((core.home is not None, core.usable, core.closed))
        for use_it in (core.require_usable, lambda: core.resize(1, 1)):
            with pytest.raises(PoolClosed):
                use_it()
        assert found == [(False, False, False), (True, True, False), (True, False, True)]

    @virtual_time
    async def test_a_pool_can_be_resized_before_it_is_opened(self) -> None:
        """The connections are opened later."""
        driver = Driver()
        core = make_core(driver, 1, 1)
        core.resize(2, 3)
        assert not driver.times("open")
        core.open()
        await settle()
        assert len(core.ledger.idle) == 2
        await core.close(0)

    @virtual_time
    async def test_a_connection_leased_on_a_loop_that_has_ended_has_its_own_error(self) -> None:
        """The error says that the work is lost, not that the connection is foreign."""
        async with running(Driver()) as core:
            conn = FakeConn(7)
            core.orphaned.add(conn)
            with pytest.raises(
                PoolWrongLoop, match="<conn 7> was leased on an event loop that has"
            ):
                core.release(conn)

    def test_on_another_loop_every_use_is_an_error(self) -> None:
        """No call hangs, and no connection is lost."""
        core = make_core(Driver(), 1)

        async def begin() -> FakeConn:
            core.open()
            await settle()
            return await take(core)

        async def elsewhere() -> None:
            with pytest.raises(PoolWrongLoop, match="open on another event loop"):
                await core.acquire(None)
            with pytest.raises(PoolWrongLoop, match=r"open on another .* one pool per event loop"):
                core.release(conn)
            with pytest.raises(PoolWrongLoop, match="open on another event loop"):
                await core.close(0)
            assert not core.usable

        async def end() -> None:
            core.release(conn)
            await core.close(0)

        with asyncio.Runner(loop_factory=VirtualLoop) as home:
            conn = home.run(begin())
            assert not core.release_now(core.ledger.leased[conn])
            with asyncio.Runner(loop_factory=VirtualLoop) as other:
                other.run(elsewhere())
            home.run(end())

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    @pytest.mark.parametrize("usual", [ok, slow(0.1)])
    @virtual_time
    async def test_a_core_works_with_eager_tasks(self, usual: Any) -> None:
        """An eager task may end before `create_task` returns."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        driver = Driver(open=usual, close=usual, reset=usual)
        async with running(driver, 2, 5) as core:
            had_at = await asyncio.gather(*(use(core, 0.1) for _ in range(20)))
            assert max(had_at) < 1.0
            for conn in list(driver.conns):
                conn.die()
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            await asyncio.sleep(1.0)
            assert core.ledger.size == len(core.ledger.idle) >= 2
        assert driver.most_sockets <= 5


class TestEagerTasks:
    """An eager task may end or fail before `create_task` returns."""

    pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="came with Python 3.12")

    @virtual_time
    async def test_a_connect_that_fails_at_once_is_not_retried_without_pause(self) -> None:
        """For example, if a socket's file is missing: the event loop would be blocked for ever."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        driver = Driver(open=fails)
        async with running(driver, 2, 5) as core:
            waiting = start(core)
            await asyncio.sleep(1.0)
            assert 3 <= len(driver.times("open")) <= 20
            driver.usual["open"] = ok
            core.release(await waiting)

    @virtual_time
    async def test_a_ping_that_fails_at_once_discards_each_connection_once(self) -> None:
        """The first failure retires the others before they are pinged."""
        loop, told = asyncio.get_running_loop(), []
        loop.set_task_factory(asyncio.eager_task_factory)
        loop.set_exception_handler(lambda _, context: told.append(context))
        driver = Driver(ping=fails)
        async with running(driver, 4, 5) as core:
            conn = await take(core)
            loop.call_soon(conn.die)
            await asyncio.sleep(0.1)
            core.release(conn)
            await asyncio.sleep(1.0)
            assert len(core.ledger.idle) == 4
            assert core.runtime.counters.lost == 3
        assert told == []

    @virtual_time
    async def test_a_callback_may_close_the_pool_at_once(self) -> None:
        """Closing does not cancel the callback that called it."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        ended: list[bool] = []

        async def give_up() -> None:
            await asyncio.sleep(0.01)
            await core.close(1.0)
            ended.append(True)

        driver = Driver(open=fails)
        async with running(driver, 1, 1, on_outage=give_up, reconnect_timeout=0.0) as core:
            await asyncio.sleep(5.0)
            assert ended == [True]


class TestForeignLoops:
    @virtual_time
    async def test_a_failing_task_factory_does_not_lose_an_entry(self) -> None:
        """No coroutine is left that was never awaited."""

        def refuse(*_: Any, **__: Any) -> Any:
            raise TypeError

        loop = asyncio.get_running_loop()
        async with running(Driver(), 0, 1) as core:
            for _ in range(3):
                loop.set_task_factory(refuse)
                try:
                    with pytest.raises(TypeError):
                        await core.acquire(1.0)
                finally:
                    loop.set_task_factory(None)
            assert core.ledger.size == 0
            core.release(await core.acquire(1.0))

    @pytest.mark.parametrize("call", ["release", "discard", "ask", "check"])
    @virtual_time
    async def test_a_failing_task_factory_does_not_keep_a_place(self, call: str) -> None:
        """What cannot be reset, closed, asked or checked now is closed a little later."""

        def refuse(*_: Any, **__: Any) -> Any:
            raise TypeError

        async def begin() -> None:
            if call == "ask":
                core.store.ask(driver.ping)
            elif call == "check":
                await core.acquire(1.0)
            else:
                getattr(core, call)(conn)

        loop, driver = asyncio.get_running_loop(), Driver()
        async with running(driver, 0, 1, check=check_alive if call == "check" else None) as core:
            conn = await core.acquire(1.0)
            conn.clean = call in {"ask", "check"}
            if conn.clean:
                core.release(conn)
            loop.set_task_factory(refuse)
            try:
                with pytest.raises(TypeError):
                    await begin()
                await asyncio.sleep(5.5)
            finally:
                loop.set_task_factory(None)
            other = await core.acquire(5.0)
            assert other is not conn
            assert conn.closed
            core.release(other)

    def test_a_failure_reported_on_another_loop_is_ignored(self) -> None:
        """A connection that outlived `asyncio.run()` must not wake the pool of that loop."""

        async def begin() -> tuple[Core[FakeConn], FakeConn]:
            core = make_core(driver, 3, 3)
            core.open()
            await settle()
            return core, await take(core)

        async def lose_it(core: Core[FakeConn], conn: FakeConn) -> None:
            conn.die()
            await settle()
            assert len(core.runtime.tasks) == 0

        driver = Driver()
        with asyncio.Runner(loop_factory=VirtualLoop) as home:
            core, conn = home.run(begin())
        with asyncio.Runner(loop_factory=VirtualLoop) as other:
            other.run(lose_it(core, conn))
        assert driver.times("ping") == []
        core.abandon_all()

    def test_durations_on_uvloop_are_not_whole_milliseconds(self) -> None:
        """uvloop's own clock has whole milliseconds, and most leases are shorter."""
        uvloop = pytest.importorskip("uvloop")

        async def live() -> list[float]:
            core = make_core(Driver(), 1, 1)
            core.open()
            for _ in range(100):
                await use(core)
            core.flush_times()
            await core.close(0)
            return core.runtime.counters.use.recent()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            times = runner.run(live())
        assert sum(each * 1000 % 1 > 0 for each in times) > 50


def test_a_clock_of_uvloop_that_differs_is_used_as_it_is() -> None:
    """Another library may have replaced it, or `time.monotonic`."""

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            """Show another time than `time.monotonic`."""
            return super().time() + 1000.0

    Loop.time.__module__ = "uvloop.loop"
    with contextlib.closing(Loop()) as loop:
        assert clock_of(loop) == loop.time


@virtual_time
async def test_a_pool_that_is_garbage_leaves_no_timer(caplog: pytest.LogCaptureFixture) -> None:
    """The pool is abandoned without I/O; its connections are returned, to be closed."""
    caplog.set_level(logging.INFO)
    driver = Driver()
    core = make_core(driver, 2, 2)
    core.open()
    await settle()
    conn = await take(core)
    await take(core)
    waiting = start(core, 5.0)
    await settle()
    assert set(core.abandon_all()) == set(driver.conns)
    waiting.cancel()
    await settle()
    assert timers() == []
    assert acquire_now(core) is None
    with pytest.raises(PoolWrongLoop):
        core.release(conn)


@virtual_time
async def test_a_pool_abandoned_in_an_outage_leaves_no_task_and_no_timer() -> None:
    """A connect under way is cancelled, and no further one is planned."""
    driver = Driver(open=fails)
    driver.script["open"].append(never)
    core = make_core(driver, 2, 2)
    core.open()
    await settle()
    assert core.outages.outage
    assert core.abandon_all() == []
    assert core.closed
    assert core.home is None
    await settle()
    assert len(core.runtime.tasks) == 0
    assert timers() == []


@virtual_time
async def test_an_abandoned_pool_leases_nothing_and_has_ended_its_leases() -> None:
    """Its connections are the caller's, which closes them."""
    core = make_core(Driver(), 2, 2)
    core.open()
    await settle()
    conn = await take(core)
    core.abandon_all()
    assert core.lease_of(conn) is NO_LEASE
    assert core.ledger.idle
    assert not core.usable
    assert acquire_now(core) is None
    with pytest.raises(PoolClosed):
        await core.acquire(None)


@virtual_time
async def test_a_task_of_an_abandoned_pool_is_cancelled_and_may_clean_up() -> None:
    """A connect closes its socket, which may take a while."""
    ended: list[float] = []

    async def clean_up() -> None:
        try:
            await never()
        finally:
            await asyncio.sleep(0.1)
            ended.append(now())

    core = make_core(Driver(open=clean_up), 1, 1)
    core.open()
    await asyncio.sleep(1.0)
    core.abandon_all()
    await asyncio.sleep(1.0)
    assert ended == [pytest.approx(1.1)]


def test_a_pool_abandoned_at_the_exit_of_the_interpreter_ends_its_tasks() -> None:
    """No loop runs any more on which they could be cancelled."""
    driver = Driver(open=never)
    core = make_core(driver, 1, 1)

    async def begin() -> None:
        core.open()
        await settle()

    loop = VirtualLoop()
    loop.run_until_complete(begin())
    assert driver.sockets == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "is_finalizing", lambda: True)
        core.abandon_all()
    assert driver.sockets == 0
    loop.close()


@pytest.mark.parametrize("closing", [False, True])
def test_a_pool_whose_loop_has_ended_abandons_everything(
    closing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The ledger is empty, the tasks are ended, and asyncio logs nothing."""
    driver = Driver()
    core = make_core(driver, 2, 4)
    mine: list[asyncio.Task[Any]] = []

    async def begin() -> None:
        core.open()
        await settle()
        driver.usual["open"] = never
        await core.acquire(None)
        await core.acquire(None)
        mine.append(asyncio.create_task(core.close(60.0)) if closing else start(core))
        await settle()

    loop = VirtualLoop()
    loop.run_until_complete(begin())
    if not closing:
        core.ledger.queue.serve(core.ledger.leased[driver.conns[0]])
    loop.close()
    for task in mine:
        force_close(task)
    assert core.ledger.idle == []
    assert set(core.abandon_all()) == set(driver.conns)
    assert (core.ledger.size, len(core.runtime.tasks), core.closed) == (0, 0, True)
    for each in [core._closing] if core._closing else []:
        work: Any = each.get_coro()
        assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
    del mine[:], task
    gc.collect()
    assert not caplog.records


def test_a_fork_leaves_the_ledger_unchanged() -> None:
    """The connections belong to the parent, whose event loop still runs."""
    driver = Driver()
    core = make_core(driver, 2, 2)

    async def begin() -> None:
        core.open()
        await settle()

    loop = VirtualLoop()
    loop.run_until_complete(begin())
    loop.close()
    assert set(core.abandon_all(forked=True)) == set(driver.conns)
    assert core.ledger.size == 2
