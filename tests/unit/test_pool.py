"""The pool's arguments, and that borrowing does not suspend; without a server."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from asyncpool import AsyncConnectionPool, PoolClosed, PoolForked, PoolTimeout, ReleaseError
from asyncpool._core.pool import Core
from tests._tools import at_once
from tests.fake import FakeConn
from tests.unit._tools import Driver, settle, virtual_time

Pool = AsyncConnectionPool[Any]


async def open_pool(min_size: int = 1) -> Pool:
    """Open a pool whose connections are fakes."""
    pool: Pool = AsyncConnectionPool("", min_size=min_size, name="main")
    core: Any = Core(pool._core.settings, Driver())
    pool._core = core
    await pool.open()
    await settle()
    return pool


class TestArguments:
    def test_the_constructor_needs_no_running_loop(self) -> None:
        """The constructor does no I/O."""
        pool = AsyncConnectionPool("host=nowhere.invalid", min_size=10)
        assert pool.closed
        assert pool.stats().size == 0

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("min_size", -1),
            ("max_size", 1.5),
            ("timeout", math.nan),
            ("max_waiting", -1),
            ("max_lifetime", 0),
            ("max_idle", "10"),
            ("reconnect_timeout", -1),
            ("num_workers", -1),
            ("ping_interval", True),
            ("ping_timeout", 0),
        ],
    )
    def test_an_invalid_number_is_refused_by_name(self, name: str, value: Any) -> None:
        """The constructor raises, not the first use."""
        with pytest.raises((TypeError, ValueError), match=f"^{name} must "):
            AsyncConnectionPool("", **{name: value})

    def test_an_unknown_keyword_is_refused(self) -> None:
        """A misspelt keyword does not silently become a default."""
        with pytest.raises(TypeError, match="max_sise"):
            AsyncConnectionPool("", max_sise=10)  # type: ignore[call-arg]

    def test_an_invalid_conninfo_is_refused_and_not_repeated(self) -> None:
        """The message omits the invalid conninfo, which may contain a password."""
        with pytest.raises(ValueError, match="neither a postgresql:// URL") as refused:
            AsyncConnectionPool("postgresql://user:hunter2@[host")
        assert "hunter2" not in str(refused.value)

    def test_an_unknown_reset_level_is_refused_with_the_valid_ones(self) -> None:
        """The message lists the valid levels."""
        reset: Any = "everything"
        with pytest.raises(ValueError, match="a callable or one of rollback, session, discard"):
            AsyncConnectionPool("", reset=reset)

    @pytest.mark.parametrize("name", ["configure", "check", "reconnect_failed"])
    def test_a_callback_that_cannot_be_called_is_refused(self, name: str) -> None:
        """The constructor raises, not the first call of the callback."""
        with pytest.raises(TypeError, match=f"^{name} must be a callable, not 'x'"):
            AsyncConnectionPool("", **{name: "x"})  # type: ignore[arg-type]

    def test_pools_without_a_name_have_different_ones(self) -> None:
        """A log can tell the pools apart."""
        first, second = AsyncConnectionPool(""), AsyncConnectionPool("")
        assert first.name != second.name

    def test_the_repr_has_the_sizes_and_no_conninfo(self) -> None:
        """The repr may be logged."""
        pool = AsyncConnectionPool("password=hunter2", name="main", min_size=2, max_size=5)
        assert repr(pool) == "<AsyncConnectionPool 'main' size=0/5 idle=0 leased=0 waiting=0>"


class TestNoSuspension:
    @virtual_time
    async def test_acquire_and_release(self) -> None:
        """With an idle, clean connection neither can be cancelled, as neither suspends."""
        pool = await open_pool()
        conn = at_once(pool.acquire())
        assert conn._pool is pool
        at_once(pool.release(conn))
        assert conn._pool is None
        await pool.close()

    @virtual_time
    async def test_acquire_as_a_coroutine(self) -> None:
        """`send`, by which asyncio steps a coroutine, does not suspend either."""
        pool = await open_pool()
        with pytest.raises(StopIteration) as end:
            pool.acquire().send(None)
        at_once(pool.release(end.value.value))
        await pool.close()

    @virtual_time
    async def test_getconn_and_putconn(self) -> None:
        """psycopg_pool's names do not suspend either."""
        pool = await open_pool()
        conn = at_once(pool.getconn())
        at_once(pool.putconn(conn))
        assert pool.stats().idle == 1
        await pool.close()

    @pytest.mark.parametrize("block", ["connection", "acquire"])
    @virtual_time
    async def test_entering_and_leaving_a_block(self, block: str) -> None:
        """A block that leaves the connection clean has nothing to commit."""
        pool = await open_pool()
        context = getattr(pool, block)()
        conn = at_once(context.__aenter__())
        assert conn._pool is pool
        at_once(context.__aexit__(None, None, None))
        assert conn._pool is None
        assert pool.stats().idle == 1
        await pool.close()

    @virtual_time
    async def test_leaving_a_block_that_failed(self) -> None:
        """The pool rolls back in a background task."""
        pool = await open_pool()
        context = pool.connection()
        conn: FakeConn = at_once(context.__aenter__())
        conn.clean = False
        error = ValueError()
        at_once(context.__aexit__(ValueError, error, None))
        assert pool.stats().cleaning == 1
        await settle()
        assert pool.stats().idle == 1
        await pool.close()


@virtual_time
async def test_a_second_release_names_its_pool() -> None:
    """The message asks whether the connection was released already."""
    pool = await open_pool()
    conn = await pool.acquire()
    await pool.release(conn)
    with pytest.raises(ReleaseError, match=r"'main' cannot accept .*released already"):
        await pool.release(conn)
    await pool.close()


@virtual_time
async def test_a_pool_with_open_false_says_how_to_open_it() -> None:
    """With `open=False` a use before `open()` is an error."""
    pool = AsyncConnectionPool("", open=False, name="main")
    with pytest.raises(PoolClosed, match="'main' is not open yet: use `async with pool`"):
        await pool.acquire()


@virtual_time
async def test_a_pool_opened_before_a_fork_is_opened_by_open_alone() -> None:
    """Until then each use is an error, although a first use opens a pool that was never open."""
    pool: Pool = AsyncConnectionPool("", min_size=1, name="main")
    core: Any = Core(pool._core.settings, Driver())
    pool._core = core
    core.mark_forked()
    for _ in range(2):
        with pytest.raises(PoolForked, match="'main' was opened before a fork"):
            await pool.acquire()
    await pool.open()
    conn = await pool.acquire()
    await pool.release(conn)
    await pool.close()


@virtual_time
async def test_an_acquisition_can_be_made_a_task() -> None:
    """`create_task` and `wait_for` accept an acquisition."""
    pool = await open_pool()
    conn = await asyncio.create_task(pool.acquire())
    with pytest.raises(PoolTimeout):
        await asyncio.wait_for(asyncio.create_task(pool.acquire(timeout=0)), 1.0)
    await pool.release(conn)
    await pool.close()
