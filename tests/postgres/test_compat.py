"""`asyncpool.compat`: what libraries that are written for psycopg_pool rely on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest
from psycopg_pool import AsyncConnectionPool as Theirs
from psycopg_pool import AsyncNullConnectionPool as TheirNullPool

import asyncpool
from asyncpool import compat

from ._tools import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = {
    compat.AsyncConnectionPool: (asyncpool.AsyncConnectionPool, Theirs),
    compat.AsyncNullConnectionPool: (asyncpool.AsyncNullConnectionPool, TheirNullPool),
}


class LibraryPool(Theirs):
    """A library's subclass, defined when psycopg_pool had its own classes."""

    def __init__(self, *args: Any, tag: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tag = tag

    async def acquire(self, *args: Any, **kwargs: Any) -> psycopg.AsyncConnection[Any]:
        return await self.getconn(*args, **kwargs)

    async def release(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await self.putconn(conn)


class LibraryNullPool(TheirNullPool):
    """A library's subclass that calls psycopg_pool's constructor by its class."""

    def __init__(self, conninfo: str) -> None:
        TheirNullPool.__init__(self, conninfo, open=False)


def make(dsn: str, factory: Callable[..., Theirs] = Theirs, **options: Any) -> Theirs:
    """A library's function with psycopg_pool's class as a default."""
    return factory(dsn, open=False, **options)


@pytest.fixture
def installed() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_pools_are_psycopg_pools_and_ours(kind: Any, dsn: str) -> None:
    """`isinstance` and `issubclass` hold for the classes of both, and the pool works."""
    async with kind(dsn, max_size=4, name="main") as pool:
        assert all(isinstance(pool, each) and issubclass(kind, each) for each in KINDS[kind])
        assert Theirs in kind.__mro__
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("name", ["PoolTimeout", "PoolClosed", "TooManyRequests"])
def test_the_errors_are_those_of_both(name: str) -> None:
    """So is each error class derived from them, whichever library's handler is there."""
    error = getattr(compat, name)
    assert issubclass(error, getattr(asyncpool, name))
    assert issubclass(error, getattr(psycopg_pool, name))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_pools_raise_those_errors(kind: Any, dsn: str) -> None:
    """This holds for each way in which a request fails."""
    least = 0 if kind is compat.AsyncNullConnectionPool else 1
    pool = kind(dsn, open=False, min_size=least, max_size=1, max_waiting=1, name="main")
    with pytest.raises(compat.PoolClosed, match="not open yet"):
        await pool.getconn()
    await pool.open(wait=True)
    conn = await pool.getconn()
    with pytest.raises(compat.PoolTimeout):
        await pool.getconn(timeout=0.01)
    waiter = asyncio.create_task(pool.getconn())
    await eventually(lambda: pool._waiting)
    with pytest.raises(compat.TooManyRequests, match="'main'"):
        await pool.getconn()
    await pool.putconn(conn)
    conn = await waiter
    await pool.close(timeout=0)
    for use in (pool.getconn, pool.open, pool.wait, lambda: pool.putconn(conn)):
        with pytest.raises(compat.PoolClosed):
            await use()


async def test_a_pool_that_is_no_use_to_wait_for_raises_psycopg_pools_timeout(dsn: str) -> None:
    """A refused role, a deadlock and a `wait()` out of time are time-outs there."""
    async with compat.AsyncConnectionPool(f"{dsn} user=nobody_at_all", min_size=0, max_size=1) as p:
        with pytest.raises(psycopg_pool.PoolTimeout) as refused:
            await p.getconn()
    assert isinstance(refused.value, compat.PoolUnavailable)
    assert isinstance(refused.value, asyncpool.PoolUnavailable)
    async with compat.AsyncConnectionPool(dsn, min_size=1) as pool, pool.connection():
        with pytest.raises(psycopg_pool.PoolTimeout) as stuck:
            await pool.getconn()
    assert isinstance(stuck.value, compat.PoolDeadlock)
    assert isinstance(stuck.value, asyncpool.PoolDeadlock)
    async with compat.AsyncConnectionPool("host=127.0.0.1 port=1") as pool:
        with pytest.raises(psycopg_pool.PoolTimeout):
            await pool.wait(timeout=0.05)


@pytest.mark.parametrize("how", ["given", "plain callables", "async callables"])
async def test_a_library_can_connect_as_the_pool_does(dsn: str, how: str) -> None:
    """`_resolve_conninfo()` and `_resolve_kwargs()` give the arguments of `connect`."""
    options = {"options": "-c work_mem=1MB"}

    async def conninfo() -> str:
        return dsn

    async def kwargs() -> dict[str, str]:
        return options

    sources: dict[str, tuple[Any, Any]] = {
        "given": (dsn, options),
        "plain callables": (lambda: dsn, lambda: options),
        "async callables": (conninfo, kwargs),
    }
    pool = compat.AsyncConnectionPool(sources[how][0], kwargs=sources[how][1], open=False)
    assert await pool._resolve_conninfo() == dsn
    assert await pool._resolve_kwargs() == options
    conn = await pool.connection_class.connect(
        await pool._resolve_conninfo(), **await pool._resolve_kwargs(), autocommit=True
    )
    async with conn:
        assert await (await conn.execute("SHOW work_mem")).fetchone() == ("1MB",)
    assert await compat.AsyncConnectionPool(dsn, open=False)._resolve_kwargs() == {}


async def test_a_subclass_may_resolve_the_arguments_of_connect(dsn: str) -> None:
    """As libraries do that fetch a token for each connection."""

    class Rotating(compat.AsyncConnectionPool):
        async def _resolve_conninfo(self) -> str:
            return f"{await super()._resolve_conninfo()} options='-c work_mem=2MB'"

        async def _resolve_kwargs(self) -> dict[str, Any]:
            return {**await super()._resolve_kwargs(), "autocommit": True}

    async with Rotating(dsn, min_size=1) as pool, pool.connection() as conn:
        assert conn.autocommit
        assert await (await conn.execute("SHOW work_mem")).fetchone() == ("2MB",)


async def test_what_libraries_read_of_the_pools_state_can_be_read(dsn: str) -> None:
    """A change of it would have no effect, so there is no way to change it."""
    pool = compat.AsyncConnectionPool(dsn, min_size=2, max_size=3, open=False)
    assert not pool._opened
    assert pool._closed
    await pool.open(wait=True)
    conn = await pool.getconn()
    assert (len(pool._pool), pool._nconns, len(pool._waiting)) == (1, 2, 0)
    assert (pool._min_size, pool._max_size, pool._opened, pool._closed) == (2, 3, True, False)
    assert all(isinstance(each, psycopg.AsyncConnection) for each in pool._pool)
    assert not hasattr(pool._pool, "clear")
    await pool.putconn(conn)
    await pool.close()
    assert pool._opened
    assert pool._closed


@pytest.mark.parametrize("name", ["_connect", "_add_to_pool", "run_task", "worker"])
@pytest.mark.parametrize("kind", KINDS)
def test_how_psycopg_pool_works_inside_is_refused(kind: Any, name: str) -> None:
    """Neither is it called, nor does an override of it go unnoticed."""
    assert hasattr(KINDS[kind][1], name)
    with pytest.raises(AttributeError, match=name):
        getattr(kind(open=False), name)
    with pytest.raises(TypeError, match=f"Odd overrides {name}"):
        type("Odd", (kind,), {name: lambda _: None, "__qualname__": "Odd"})


@pytest.mark.usefixtures("installed")
async def test_installed_pools_are_made_wherever_the_class_was_imported(dsn: str) -> None:
    """From the package now, from it earlier, from its module, and as a default argument."""
    from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool, pool_async

    assert AsyncConnectionPool is compat.AsyncConnectionPool
    assert AsyncNullConnectionPool is compat.AsyncNullConnectionPool
    factories: list[Any] = [AsyncConnectionPool, Theirs, pool_async.AsyncConnectionPool, make]
    for factory in factories:
        async with (
            factory(dsn, min_size=1)
            if factory is make
            else factory(conninfo=dsn, min_size=1, open=False) as pool
        ):
            assert type(pool) is compat.AsyncConnectionPool
            assert isinstance(pool, Theirs)
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
    async with TheirNullPool(dsn, max_size=2, open=False) as pool:
        assert type(pool) is compat.AsyncNullConnectionPool
        assert (pool.min_size, pool.max_size) == (0, 2)


@pytest.mark.usefixtures("installed")
async def test_installed_pools_stand_under_subclasses(dsn: str) -> None:
    """Those that a library defined before, with its own methods and constructor."""
    async with LibraryPool(dsn, min_size=1, open=False, tag="main") as pool:
        assert isinstance(pool, LibraryPool)
        assert isinstance(pool, compat.AsyncConnectionPool)
        assert (type(pool).__name__, pool.tag) == ("LibraryPool", "main")
        conn = await pool.acquire(timeout=5)
        with pytest.raises(compat.PoolTimeout):
            await pool.acquire(timeout=0)
        await pool.release(conn)
        async with pool.connection() as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
        assert await pool.fetchval("SELECT 1") == 1
    async with LibraryNullPool(dsn) as pool:
        assert isinstance(pool, compat.AsyncNullConnectionPool)
        async with pool.connection() as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)


async def test_uninstalled_pools_are_psycopg_pools_own_again(dsn: str) -> None:
    """Pools that exist stay as they are, and pools for threads are never replaced."""
    async with Theirs(dsn, min_size=1, open=False) as before:
        compat.install()
        try:
            compat.install()
            during = Theirs(dsn, min_size=1, open=False)
            threads: object = psycopg_pool.ConnectionPool(dsn, open=False)
            assert not isinstance(threads, asyncpool.AsyncConnectionPool)
            async with before.connection() as conn:
                await conn.execute("SELECT 1")
        finally:
            compat.uninstall()
            compat.uninstall()
        assert psycopg_pool.AsyncConnectionPool is Theirs
        assert psycopg_pool.AsyncNullConnectionPool is TheirNullPool
        async with (
            during,
            Theirs(dsn, min_size=1, open=False) as after,
            LibraryPool(dsn, min_size=1, open=False, tag="main") as library,
            TheirNullPool(dsn, open=False) as null,
        ):
            assert type(during) is compat.AsyncConnectionPool
            assert [type(each) for each in (after, library, null)] == [
                Theirs,
                LibraryPool,
                TheirNullPool,
            ]
            for pool in (during, after, library, null):
                async with pool.connection() as conn:
                    assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
        async with compat.AsyncConnectionPool(dsn, min_size=1) as ours:
            assert await ours.fetchval("SELECT 1") == 1


def test_without_psycopg_pool_the_import_says_so() -> None:
    """The rest of the package does not need it."""
    program = "import sys; sys.modules['psycopg_pool'] = None; import asyncpool, asyncpool.compat"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: asyncpool.compat needs psycopg_pool" in done.stderr
    assert "pip install psycopg_pool" in done.stderr
