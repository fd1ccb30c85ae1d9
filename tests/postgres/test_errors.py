"""Outages, misuse and secrets: what went wrong is said, once, and never with a password."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool, PoolClosed, PoolTimeout, PoolUnavailable
from tests._tools import few

from ._tools import (
    Backends,
    OwnPutconn,
    Proxy,
    all_usable,
    at_rest,
    eventually,
    in_time,
    needs_internals,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from asyncpool.testing import Server

SECRET = "hunter2-Zo9"  # noqa: S105


async def test_a_server_that_is_down_at_start_is_the_cause_of_the_timeout(server: Server) -> None:
    """PoolTimeout has the last connect error as its cause, in its text and in its chain."""
    await server.stop()
    async with AsyncConnectionPool(server.dsn, min_size=2) as pool:
        with pytest.raises(
            PoolTimeout, match=r"connecting has failed .*connection failed"
        ) as caught:
            await pool.acquire(timeout=0.5)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert "connection failed" in str(caught.value.__cause__)
        assert "connection failed" in str(pool.explain())
        assert "advice" in str(pool.explain())


async def test_a_request_is_served_when_the_server_comes_up(server: Server, dsn: str) -> None:
    """The request keeps its place in the wait queue over the outage."""
    await server.stop()
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        waiters = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(5)]
        await eventually(lambda: pool.stats().connects_failed >= 2)
        assert pool.stats().waiting == 5
        await server.start()
        assert await in_time(asyncio.gather(*waiters)) == [1] * 5
        await all_usable(pool)
        assert "connecting fails" not in str(pool.explain())


async def test_a_server_killed_in_mid_use_loses_no_place(
    server: Server, dsn: str, backends: Backends
) -> None:
    """Borrowers get the error of their query; then the pool is as large as it was."""
    async with AsyncConnectionPool(dsn, min_size=2, max_size=4, ping_interval=0.3) as pool:
        await pool.wait()

        async def work() -> str:
            try:
                async with pool.connection() as conn:
                    await conn.execute("SELECT pg_sleep(60)")
            except psycopg.OperationalError as error:
                return type(error).__name__
            return "nothing"

        tasks = [asyncio.create_task(work()) for _ in range(4)]
        await eventually(lambda: backends.running("pg_sleep") == 4)
        await server.kill()
        assert "nothing" not in await in_time(asyncio.gather(*tasks))
        waiter = asyncio.create_task(pool.fetchval("SELECT 1"))
        await eventually(lambda: pool.stats().connects_failed)
        await server.start()
        assert await in_time(waiter) == 1
        await all_usable(pool)


async def test_a_restart_while_all_is_idle_heals_with_no_request(server: Server, dsn: str) -> None:
    """The pings find out, and the minimum is opened anew."""
    async with AsyncConnectionPool(dsn, min_size=3, ping_interval=0.2) as pool:
        await pool.wait()
        await server.restart()
        await eventually(lambda: pool.stats().lost == 3)
        await all_usable(pool)


async def test_an_outage_is_logged_once_not_at_every_attempt(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning when it begins and one when it is over; the rest is for those who look."""
    caplog.set_level(logging.INFO, "asyncpool")
    await server.stop()
    async with AsyncConnectionPool(server.dsn, min_size=1) as pool:
        await eventually(lambda: pool.stats().connects_failed >= 4)
        await server.start()
        await at_rest(pool)
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert ["cannot connect" in each.getMessage() for each in warnings] == [True, False]
    assert "connected again after" in warnings[-1].getMessage()


@pytest.mark.exhaustive
async def test_attempts_become_fewer_while_an_outage_lasts(server: Server) -> None:
    """There is one probe at a time, with growing pauses, however many requests wait."""
    await server.stop()
    async with AsyncConnectionPool(server.dsn, min_size=10) as pool:
        waiters = [asyncio.create_task(pool.acquire(timeout=1.5)) for _ in range(50)]
        await asyncio.wait(waiters)
        assert all(isinstance(each.exception(), PoolTimeout) for each in waiters)
        # The first ten were under way before the first had failed.
        assert 3 <= pool.stats().connects_failed <= 10 + 12


@pytest.mark.parametrize("is_async", few([False, True]))
@pytest.mark.exhaustive
async def test_reconnect_failed_is_called_once_per_outage(server: Server, is_async: bool) -> None:
    """After `reconnect_timeout` of failures, with the pool; the pool goes on trying."""
    told: list[object] = []

    async def tell(pool: object) -> None:
        told.append(pool)

    await server.stop()
    async with AsyncConnectionPool(
        server.dsn,
        min_size=1,
        reconnect_timeout=0.2,
        reconnect_failed=tell if is_async else told.append,
    ) as pool:
        await eventually(lambda: told)
        failed = pool.stats().connects_failed
        await eventually(lambda: pool.stats().connects_failed > failed + 1)
        assert told == [pool]
        await server.start()
        await at_rest(pool)
    told.clear()


async def test_wait_on_a_server_that_is_down_closes_the_pool(server: Server) -> None:
    """psycopg_pool does so too; the error counts the open connections and has the cause."""
    await server.stop()
    pool = AsyncConnectionPool(server.dsn, min_size=2)
    with pytest.raises(PoolTimeout, match="0 of 2") as caught:
        await pool.open(wait=True, timeout=0.3)
    assert "connection failed" in str(caught.value.__cause__)
    assert pool.closed
    with pytest.raises(PoolClosed):
        await pool.acquire()


async def test_a_check_that_fails_discards_and_the_next_is_tried(dsn: str) -> None:
    """The unfit connection does not come back, and the borrower does not notice."""
    unfit: set[psycopg.AsyncConnection[Any]] = set()

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        if conn in unfit:
            raise RuntimeError("unfit")

    async with AsyncConnectionPool(dsn, min_size=3, check=check) as pool:
        await pool.wait()
        async with pool.connection() as a, pool.connection() as b, pool.connection() as c:
            unfit = {a, b}
        async with pool.connection(timeout=5) as conn:
            assert conn is c
        for _ in range(6):
            async with pool.connection(timeout=5) as conn:
                assert conn not in unfit
        await all_usable(pool)
        assert pool.stats().lost == 2


async def test_a_check_that_always_fails_ends_in_the_timeout_with_its_error(dsn: str) -> None:
    """New connections that fail are not opened in a storm."""

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        raise RuntimeError("never fit")

    async with AsyncConnectionPool(dsn, min_size=1, check=check) as pool:
        with pytest.raises(PoolTimeout, match="never fit") as caught:
            await pool.acquire(timeout=1)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert pool.stats().connects < 15
        assert pool.stats().leased == 0


async def test_a_check_that_hangs_does_not_outlast_the_timeout(dsn: str) -> None:
    """The deadline is one instant, whatever a check does; and the connection is not lost."""
    go_on = asyncio.Event()

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        await go_on.wait()

    async with AsyncConnectionPool(dsn, min_size=1, check=check) as pool:
        await pool.wait()
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(PoolTimeout):
            await in_time(pool.acquire(timeout=0.5), 5)
        assert 0.4 <= loop.time() - started < 2
        assert pool.stats().leased == 0
        go_on.set()
        async with pool.connection(timeout=5):
            pass
        await all_usable(pool)
        assert pool.stats().connects == 1


async def test_a_check_on_a_deaf_network_does_not_outlast_the_timeout(dsn: str) -> None:
    """A round trip that is never answered is bounded by the request's own deadline."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(
            proxy.dsn, min_size=1, check=AsyncConnectionPool.check_connection
        ) as pool,
    ):
        await pool.wait()
        proxy.open_way.clear()
        with pytest.raises(PoolTimeout):
            await in_time(pool.acquire(timeout=0.3), 3)
        proxy.open_way.set()
        async with pool.connection(timeout=10) as conn:
            await conn.execute("SELECT 1")


async def test_a_configure_that_fails_counts_as_a_failed_connect(
    dsn: str, backends: Backends
) -> None:
    """The connection is closed, the next attempt comes after a pause, and it serves."""
    attempts = 0

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 2:
            raise RuntimeError("not yet")

    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        stats = await at_rest(pool)
        assert (stats.connects, stats.connects_failed, attempts) == (3, 2, 3)
        await eventually(lambda: len(backends.pids()) == 1)


async def test_a_configure_that_leaves_a_transaction_is_told_so(
    dsn: str, backends: Backends
) -> None:
    """Such a connection never serves; the cause of the timeout says what to do."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT 1")

    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        with pytest.raises(
            PoolTimeout, match="configure left the connection in status INTRANS"
        ) as caught:
            await pool.acquire(timeout=0.3)
        assert isinstance(caught.value.__cause__, psycopg.ProgrammingError)
        await eventually(lambda: len(backends.pids()) <= 1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"min_size": -1}, "min_size must not be negative"),
        ({"min_size": 5, "max_size": 4}, "max_size must be at least min_size"),
        ({"min_size": 0}, "max_size must be at least 1"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"timeout": "5"}, "timeout must be a number"),
        ({"max_idle": 0}, "max_idle must be above zero"),
        ({"max_waiting": 1.5}, "max_waiting must be an int"),
        ({"num_workers": -1}, "num_workers must not"),
        ({"nonsense": 1}, "nonsense"),
        ({"conninfo": 5}, "conninfo must be a str or a callable"),
        ({"kwargs": 5}, "kwargs"),
        ({"reset": 5}, "reset must be"),
        ({"check": "SELECT 1"}, "check must be"),
        ({"configure": "SET x = 1"}, "configure must be"),
        ({"reconnect_failed": 1}, "reconnect_failed must be"),
        ({"connection_class": psycopg.Connection}, "connection_class must be"),
        ({"connection_class": None}, "connection_class must be"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named_at_the_call(
    keywords: dict[str, Any], message: str
) -> None:
    """Not at the first connect, in a task of the pool, again and again."""
    with pytest.raises((TypeError, ValueError), match=message):
        AsyncConnectionPool(**keywords)


# A password never shows: not in a repr, a log, an error, a report or a statistic.


def everything_said(error: BaseException | None) -> Iterator[str]:
    """An error with all that a traceback would print beneath it."""
    while error is not None:
        # psycopg's own errors carry the connection, and thus all that it was made with.
        facts = {name: fact for name, fact in vars(error).items() if name != "_pgconn"}
        yield f"{error!r} {error} {error.args!r} {facts!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def reports_of(pool: AsyncConnectionPool) -> str:
    """All that a pool says of itself."""
    health = await pool.health()
    parts = [pool.stats(), pool.get_stats(), pool.explain(), health, health.as_dict(), pool]
    return " ".join(repr(part) for part in parts)


@needs_internals
async def test_a_password_that_works_never_shows(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In no report of a busy, an exhausted and a closed pool."""
    caplog.set_level(logging.DEBUG)
    secret = str(conninfo_to_dict(dsn).get("password") or SECRET)
    given = make_conninfo(dsn, password=secret)
    async with AsyncConnectionPool(given, min_size=1) as pool:
        async with pool.connection():
            said = await reports_of(pool)
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0.01)
            said += " ".join(everything_said(caught.value))
        async with pool.connection() as conn:
            said += repr(conn)
            await conn.close()
        said += await reports_of(pool)
    said += await reports_of(pool)
    assert secret not in said + caplog.text


@pytest.fixture
def guarded(server: Server) -> Iterator[str]:
    """The DSN of a role that must give a password, and gives a wrong one."""
    role = f"guarded_{uuid4().hex[:8]}"
    observer = Backends(server.dsn, role)
    ((path,),) = observer.ask("SHOW hba_file")
    rules = observer.ask("SELECT pg_read_file(%s)", path)[0][0]

    def write(lines: str) -> None:
        literal = psycopg.sql.Literal(lines.replace("\t", " ")).as_string(None)
        observer.ask(f"COPY (SELECT unnest(string_to_array({literal}, E'\\n'))) TO '{path}'")
        observer.ask("SELECT pg_reload_conf()")

    observer.ask(f"CREATE ROLE {role} LOGIN PASSWORD 'the right one'")
    write(f"host all {role} all scram-sha-256\n{rules}")
    yield make_conninfo(server.dsn, user=role, password=SECRET)
    write(rules)
    observer.ask(f"DROP ROLE {role}")


async def test_a_wrong_password_is_reported_without_it(
    guarded: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's own words come out; the password in none of them."""
    caplog.set_level(logging.DEBUG)

    def refused() -> bool:
        try:
            psycopg.connect(guarded).close()
        except psycopg.OperationalError:
            return True
        return False

    await eventually(refused)  # the server has read its rules again
    async with AsyncConnectionPool(guarded, min_size=1) as pool:
        with pytest.raises(PoolTimeout, match="password authentication failed") as caught:
            await pool.acquire(timeout=1)
        said = await reports_of(pool)
    assert SECRET not in said + caplog.text + " ".join(everything_said(caught.value))


MALFORMED = [
    f"host=localhost password={SECRET} nonsense",
    f"host=localhost password={SECRET} no_such_option=1",
    f"postgresql://user:{SECRET}@[::1/database",
    f"postgresql://user:%zz{SECRET}@localhost/database",
    f"postgresql://user:{SECRET}@localhost/database?no_such_option=1",
    f"mysql://user:{SECRET}@localhost/database",
    f"host=localhost password='{SECRET}",
    # The commonest mistake: what should have been percent-encoded.
    f"postgresql://user:p/{SECRET}@localhost/database",
    f"postgresql://user:p@{SECRET}@localhost/database",
    f"postgresql://user:p#?{SECRET}@localhost/database",
]


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_dsn_is_refused_without_showing_it(
    malformed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the call where it can be seen there, else in the timeout; never with the password."""
    caplog.set_level(logging.DEBUG)
    said = ""
    try:
        pool = AsyncConnectionPool(malformed, min_size=1)
    except ValueError as error:
        assert "conninfo" in str(error)  # noqa: PT017 - it may also come later, below
        said += " ".join(everything_said(error))
    else:
        async with pool:
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0.3)
            said += " ".join(everything_said(caught.value)) + await reports_of(pool)
    assert SECRET not in said + caplog.text


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_dsn_of_a_callable_is_not_shown_either(
    malformed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A callable's DSN is known only at the connect, whose error goes everywhere."""
    caplog.set_level(logging.DEBUG)
    async with AsyncConnectionPool(lambda: malformed, min_size=1) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=0.3)
        said = await reports_of(pool)
    assert SECRET not in said + caplog.text + " ".join(everything_said(caught.value))


@pytest.mark.parametrize("answer", [5, None, RuntimeError("the vault is shut")])
async def test_a_callable_that_gives_no_dsn_is_the_cause(answer: object) -> None:
    """The error of the callable, or that of its answer, is the cause."""

    def conninfo() -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    async with AsyncConnectionPool(conninfo, min_size=1) as pool:
        with pytest.raises((PoolTimeout, PoolUnavailable)) as caught:
            await pool.acquire(timeout=0.2)
    cause = caught.value.__cause__
    assert cause is answer if isinstance(answer, Exception) else "must give a str" in str(cause)


async def test_a_check_may_leave_its_transaction_open(dsn: str) -> None:
    """A plain query starts one; the borrower gets the connection without it."""

    async def check(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT 1")

    async with AsyncConnectionPool(dsn, min_size=1, check=check) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        async with pool.connection() as conn:
            assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def ends_late(pool: AsyncConnectionPool) -> None:
    """Run several statements for longer than allowed."""
    await pool.executemany("SELECT pg_sleep(%s)", [[60]], timeout=0.05)


async def fails_unseen(pool: AsyncConnectionPool, block: str) -> None:
    """Handle an error in a block, which is refused at its end."""
    async with getattr(pool, block)() as conn:
        with suppress(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1/0")


async def leaves_a_block(pool: AsyncConnectionPool) -> None:
    """End a block inside of a session when another inside of it is open."""
    async with pool.session():
        outer = pool.transaction()
        await outer.__aenter__()
        await pool.transaction().__aenter__()
        await outer.__aexit__(None, None, None)


async def is_refused(pool: AsyncConnectionPool) -> None:
    """Wait for the connections of a pool whose database does not exist."""
    conninfo = make_conninfo(str(pool.conninfo), dbname="nowhere")
    async with AsyncConnectionPool(conninfo, min_size=1) as other:
        await other.wait()


async def listens_in_vain(pool: AsyncConnectionPool) -> None:
    """Listen while another block has the only connection."""
    async with pool.connection(), pool.listen("news", timeout=0.01):
        pass


async def sets_nonsense(pool: AsyncConnectionPool) -> None:
    """Begin a transaction with a setting that the server refuses."""
    async with pool.transaction(settings={"work_mem": "nonsense"}) as conn:
        await conn.execute("SELECT 1")


async def gives_up(pool: AsyncConnectionPool) -> None:
    """Fail in each of two attempts."""

    async def work(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("DO $$ BEGIN RAISE serialization_failure; END $$")

    await pool.run_transaction(work, attempts=2)


FAILURES: dict[str, tuple[Callable[[AsyncConnectionPool], Awaitable[None]], type[Any]]] = {
    "late": (ends_late, AsyncConnectionPool),
    "transaction": (lambda pool: fails_unseen(pool, "transaction"), AsyncConnectionPool),
    "session": (lambda pool: fails_unseen(pool, "session"), AsyncConnectionPool),
    "by methods": (lambda pool: fails_unseen(pool, "transaction"), OwnPutconn),
    "out of turn": (leaves_a_block, AsyncConnectionPool),
    "refused": (is_refused, AsyncConnectionPool),
    "listening": (listens_in_vain, AsyncConnectionPool),
    "settings": (sets_nonsense, AsyncConnectionPool),
    "retrying": (gives_up, AsyncConnectionPool),
}


@pytest.mark.parametrize("way", FAILURES)
async def test_an_error_that_was_handled_goes_with_its_frames(dsn: str, way: str) -> None:
    """No reference cycle keeps it, and with it the connection and the pool, until a collection."""
    fail, kind = FAILURES[way]
    gc.collect()
    gc.disable()
    try:
        async with kind(dsn, min_size=1) as pool:
            try:
                await fail(pool)
            except psycopg.Error as error:
                seen = weakref.ref(error)
            await at_rest(pool)
            assert await eventually(lambda: seen() is None)
    finally:
        gc.enable()
