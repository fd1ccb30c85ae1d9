"""Beyond one loop and one process: other event loops, uvloop, forked children, the exit."""

from __future__ import annotations

import asyncio
import os
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, PoolClosed, PoolError, PoolTimeout, PoolWrongLoop
from tests._tools import few

from ._tools import Backends, all_usable, at_rest, backend_of, eventually, in_time, run_script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[[Callable[[], Awaitable[None]]], None]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(params=["asyncio", "asyncio in debug mode", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run an async function on an event loop of its own, of each kind."""
    factory = None
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        factory = uvloop.new_event_loop
    debug = request.param == "asyncio in debug mode"

    def run_it(main: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            await in_time(main(), 30)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others, f"tasks are left: {others}"

        with asyncio.Runner(loop_factory=factory, debug=debug) as runner:
            runner.run(whole())

    return run_it


def test_a_pool_leases_and_hands_over_on_every_loop(run: Run, asyncpool_dsn: str) -> None:
    """The line, growth, transactions and one-shots."""

    async def main() -> None:
        async with AsyncConnectionPool(asyncpool_dsn, min_size=1, max_size=3) as pool:
            served: list[int] = []

            async def borrow(number: int) -> None:
                async with pool.connection() as conn:
                    served.append(number)
                    await conn.execute("SELECT 1")

            await asyncio.gather(*(borrow(number) for number in range(30)))
            assert served == list(range(30))
            async with pool.transaction() as conn:
                await conn.execute("SELECT 1")
            assert await pool.fetchval("SELECT 7") == 7
            await all_usable(pool)
            assert (await pool.health()).status == "ok"

    run(main)


def test_deadlines_hold_on_every_loop(run: Run, asyncpool_dsn: str) -> None:
    """Each request ends at its own, in order, and the pool goes on."""

    async def main() -> None:
        async with AsyncConnectionPool(asyncpool_dsn, min_size=1) as pool:
            async with pool.connection():
                ended: list[float] = []

                async def ask(timeout: float) -> None:
                    with pytest.raises(PoolTimeout):
                        await pool.acquire(timeout=timeout)
                    ended.append(timeout)

                await asyncio.gather(*(ask(timeout) for timeout in (0.2, 0.05, 0.1, 0)))
                assert ended == [0, 0.05, 0.1, 0.2]
            await all_usable(pool)

    run(main)


def test_cancellation_loses_nothing_on_every_loop(run: Run, asyncpool_dsn: str) -> None:
    """In the line, at the hand-over and in a query."""

    async def main() -> None:
        async with AsyncConnectionPool(asyncpool_dsn, min_size=2) as pool:

            async def work() -> None:
                async with pool.connection() as conn:
                    await conn.execute("SELECT pg_sleep(0.01)")

            for pause in (0, 0.001, 0.005, 0.01, 0.02):
                tasks = [asyncio.create_task(work()) for _ in range(10)]
                await asyncio.sleep(pause)
                for task in tasks[::2]:
                    task.cancel()
                await asyncio.wait(tasks)
                with anyio.move_on_after(pause):
                    await work()
            await all_usable(pool)

    run(main)


def test_broken_connections_are_replaced_on_every_loop(run: Run, asyncpool_dsn: str) -> None:
    """Killed while idle and while lent, under a check."""

    async def main() -> None:
        name = f"test-{uuid4().hex[:12]}"
        backends = Backends(asyncpool_dsn, name)
        named = make_conninfo(asyncpool_dsn, application_name=name)
        async with AsyncConnectionPool(
            named, min_size=3, check=AsyncConnectionPool.check_connection
        ) as pool:
            await pool.wait()
            for _ in range(3):
                lent = pool.connection()
                conn = await lent.__aenter__()
                await conn.execute("SELECT 1")
                backends.terminate()
                with pytest.raises(psycopg.OperationalError):
                    await conn.execute("SELECT 1")
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    await lent.__aexit__(None, None, None)
                assert await pool.fetchval("SELECT 1") == 1
            await all_usable(pool)
        assert not backends.pids()

    run(main)


def test_close_ends_on_every_loop(run: Run, asyncpool_dsn: str) -> None:
    """With waiters, a query that runs, and a connection that is not given back."""

    async def main() -> None:
        pool = AsyncConnectionPool(asyncpool_dsn, min_size=2)
        await pool.acquire()
        sleeper = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: pool.stats().leased == 2)
        waiter = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.stats().waiting)
        await in_time(pool.close(timeout=0.1), 10)
        ends = await in_time(asyncio.gather(sleeper, waiter, return_exceptions=True), 5)
        assert isinstance(ends[0], psycopg.OperationalError)
        assert isinstance(ends[1], PoolClosed)
        assert pool.stats().size == 0

    run(main)


async def test_another_loop_gets_a_clear_error(dsn: str) -> None:
    """From a thread with a loop of its own: each use says so, none hangs, nothing is lost."""
    async with AsyncConnectionPool(dsn, min_size=1, name="mine") as pool:
        conn = await pool.acquire()
        found: dict[str, BaseException | None] = {}

        async def elsewhere() -> None:
            uses: dict[str, Any] = {
                "acquire": pool.acquire,
                "connection": pool.connection().__aenter__,
                "fetchval": lambda: pool.fetchval("SELECT 1"),
                "release": lambda: pool.release(conn),
                "wait": pool.wait,
                "open": pool.open,
                "check": pool.check,
                "drain": pool.drain,
            }
            for name, use in uses.items():
                found[name] = None
                try:
                    await in_time(use(), 5)
                except PoolError as error:
                    found[name] = error
            found["health"] = None
            await in_time(pool.health(), 5)

        def thread() -> None:
            asyncio.run(elsewhere())

        await asyncio.to_thread(thread)
        del found["health"]
        for name, error in found.items():
            assert isinstance(error, PoolWrongLoop), name
            assert "'mine' is open on another event loop" in str(error)
        await pool.release(conn)
        await all_usable(pool)


@pytest.mark.parametrize("use", ["close", "resize"])
async def test_what_another_loop_may_not_do_either(dsn: str, use: str) -> None:
    """Closing and resizing start the pool's own tasks, which belong to its own loop."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        found: list[BaseException] = []

        def thread() -> None:
            work = pool.close() if use == "close" else pool.resize(2, 4)
            try:
                asyncio.run(in_time(work, 5))
            except BaseException as error:  # noqa: BLE001 - it is looked at below
                found.append(error)

        worker = threading.Thread(target=thread)
        worker.start()
        await in_time(asyncio.to_thread(worker.join))
        assert [type(error) for error in found] == [PoolWrongLoop]
        assert not pool.closed
        await all_usable(pool)


FORK = """
import asyncio, os, sys
from asyncpool import AsyncConnectionPool, PoolForked

async def backend(pool):
    async with pool.connection(timeout=10) as conn:
        cur = await conn.execute("SELECT pg_backend_pid()")
        return (await cur.fetchone())[0]

async def in_child(pool, lent):
    for use in (pool.acquire, pool.wait, pool.check, lambda: pool.fetchval("SELECT 1")):
        try:
            await use()
        except PoolForked as error:
            assert "forked" in repr(pool) and "pool.open()" in str(error), error
        else:
            raise AssertionError("no error in the child")
    report = await pool.health()
    assert report.status == "down", report
    assert pool.stats().size == 0, pool.stats()
    try:
        await pool.release(lent)
    except Exception as error:
        assert "forked" in str(error), error
    else:
        raise AssertionError("the parent's connection was taken back")
    async with pool:
        print("child", await backend(pool), flush=True)
        assert await pool.fetchval("SELECT count(*) FROM generate_series(1, 3)") == 3

def child(pool, lent):
    asyncio.run(in_child(pool, lent))

async def use(pool):
    return {await backend(pool) for _ in range(4)}
"""

FORK_BETWEEN_RUNS = (
    FORK
    + """
pool = AsyncConnectionPool(sys.argv[1], min_size=2, name="forked")
with asyncio.Runner() as runner:
    runner.run(pool.open(wait=True))
    lent = runner.run(pool.getconn())
    before = runner.run(use(pool))
    number = os.fork()
    if number == 0:
        runner = None
        child(pool, lent)
        sys.exit(0)  # with all of its finalizers
    assert os.waitpid(number, 0)[1] == 0
    assert runner.run(use(pool)) == before
    async def last():
        await lent.execute("SELECT 1")
        await lent.rollback()
        await pool.release(lent)
        await pool.close()
    runner.run(last())
    print("parent", before)
"""
)

FORK_IN_A_TASK = (
    FORK
    + """
async def main():
    async with AsyncConnectionPool(sys.argv[1], min_size=2, name="forked") as pool:
        await pool.wait()
        lent = await pool.acquire()
        before = await use(pool)
        waiting = [asyncio.create_task(pool.getconn()) for _ in range(2)]
        await asyncio.sleep(0)
        number = os.fork()
        if number == 0:
            try:
                import threading
                # The child has a copy of the parent's loop in its hands: leave that alone.
                worker = threading.Thread(target=child, args=(pool, lent))
                failed = []
                threading.excepthook = failed.append
                worker.start()
                worker.join()
                if failed:
                    print(failed[0], file=sys.stderr, flush=True)
            finally:
                os._exit(len(failed))
        while os.waitpid(number, os.WNOHANG) == (0, 0):
            await asyncio.sleep(0.01)
        await lent.execute("SELECT 1")
        await lent.rollback()
        await pool.release(lent)
        for waiter in waiting:
            await pool.release(await waiter)
        assert await use(pool) <= before | {lent.info.backend_pid}
        print("parent", before)
asyncio.run(main())
"""
)


@forks
@pytest.mark.parametrize(
    "script", few([FORK_BETWEEN_RUNS, FORK_IN_A_TASK]), ids=["preload", "task"]
)
async def test_a_forked_child_leaves_the_parents_sessions_alone(dsn: str, script: str) -> None:
    """The child gets a clear error, or after `open()` its own pool; the parent notices nothing."""
    told = await run_script(script, dsn)
    (child,) = [line.split()[1] for line in told.splitlines() if line.startswith("child")]
    (parent,) = [line for line in told.splitlines() if line.startswith("parent")]
    assert child not in parent


LAZY_FORK = """
import asyncio, os, sys
from asyncpool import AsyncConnectionPool

pool = AsyncConnectionPool(sys.argv[1], min_size=1)
number = os.fork()

async def main():
    assert await pool.fetchval("SELECT 1") == 1
    await pool.close()

asyncio.run(main())
if number:
    assert os.waitpid(number, 0)[1] == 0
    print("both")
"""


@forks
async def test_a_pool_that_was_not_open_yet_works_in_parent_and_child(dsn: str) -> None:
    """A module-level pool, forked before its first use, is nothing special."""
    assert (await run_script(LAZY_FORK, dsn)).split() == ["both"]


EXIT = """
import asyncio, sys, warnings
warnings.simplefilter("ignore", ResourceWarning)
from asyncpool import AsyncConnectionPool

pool = AsyncConnectionPool(sys.argv[1], min_size=2)

async def main():
    global lent
    await pool.open(wait=True)
    lent = await pool.acquire()
    await lent.execute("SELECT 1")
    print("done")

asyncio.run(main())
"""


async def test_an_exit_without_close_is_quiet(dsn: str, backends: Backends) -> None:
    """No traceback, no hang, and no session stays behind."""
    assert (await run_script(EXIT, dsn)).split() == ["done"]
    await eventually(lambda: not backends.pids())


@pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
async def test_it_works_under_uvloops_own_run(dsn: str) -> None:
    """An application starts uvloop this way."""
    script = """
import asyncio, sys, uvloop
from asyncpool import AsyncConnectionPool

async def main():
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with AsyncConnectionPool(sys.argv[1], min_size=1, max_size=4) as pool:
        ones = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(50)))
        print(sum(ones))

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    assert (await run_script(script, dsn)).split() == ["50"]


async def test_two_pools_share_nothing(dsn: str) -> None:
    """Pools of one loop serve, fail and close each for itself."""
    async with AsyncConnectionPool(dsn, min_size=1) as one:
        async with AsyncConnectionPool(dsn, min_size=1) as other:
            async with one.connection() as a, other.connection() as b:
                assert await backend_of(a) != await backend_of(b)
            await other.close()
        assert await one.fetchval("SELECT 1") == 1
        assert (await at_rest(one)).size == 1
