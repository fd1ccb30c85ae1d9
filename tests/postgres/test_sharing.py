"""One-shots of many tasks share connections in pipeline mode."""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg.types.range import Range
from psycopg.types.string import TextLoader

from asyncpool import AsyncConnectionPool, PoolClosed, PoolTimeout
from asyncpool._pipeline import channel as channels
from asyncpool._psycopg.cancellation import cancel_until_ended

from ._tools import BOTH_LOOPS, Proxy, at_rest, eventually, in_time, needs_internals

if TYPE_CHECKING:
    from ._tools import Backends

pytestmark = needs_internals

LOOPS = BOTH_LOOPS


def sharing(dsn: str, **options: Any) -> AsyncConnectionPool:
    """Create a pool whose one-shots share connections."""
    return AsyncConnectionPool(dsn, pipeline=True, **options)


async def seen_as_quick(pool: AsyncConnectionPool, query: str, *params: Any, **how: Any) -> None:
    """Run a read until the pool shares a connection for it; a busy machine may need more runs."""
    for _ in range(200):
        before = pool.stats().requests_shared
        await pool.fetchval(query, params or None, **how)
        if pool.stats().requests_shared > before:
            return
    pytest.fail(f"never quick: {query}")


async def test_a_thousand_tasks_need_a_handful_of_connections(dsn: str) -> None:
    """Each task gets its own result, and the pool does not grow.

    On a machine that stalls for milliseconds the read seems slow, and the pool grows.
    """
    connects = []
    for _ in range(10):
        async with sharing(dsn, min_size=1, max_size=20) as pool:
            await seen_as_quick(pool, "SELECT %s::int", 1)
            reads = [pool.fetchval("SELECT %s::int", [n]) for n in range(1000)]
            assert await asyncio.gather(*reads) == list(range(1000))
            connects.append((await at_rest(pool)).connects)
        if connects[-1] <= 6:
            break
    assert connects[-1] <= 6, connects


async def test_they_do_not_wait_for_one_anothers_round_trip(dsn: str) -> None:
    """A hundred one-shots are sent in a few packets on one connection."""
    async with (
        Proxy(dsn) as proxy,
        sharing(proxy.dsn, min_size=1, shared_size=1) as pool,
    ):
        await pool.fetchval("SELECT 1")
        before = proxy.turns
        await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(100)))
        assert proxy.turns - before < 50


async def test_a_slow_network_makes_no_statement_slow(dsn: str) -> None:
    """New reads are sent behind those in flight, however long the round trip is.

    A busy machine may make some reads seem slow, but not all.
    """
    async with (
        Proxy(dsn) as proxy,
        sharing(proxy.dsn, min_size=1, shared_size=1) as pool,
    ):
        await pool.wait()
        proxy.lag = 0.03
        for _ in range(2):
            await pool.fetchval("SELECT 1")
        queued: list[int] = []
        while 0 not in queued and len(queued) < 10:
            before = pool.stats().requests_queued
            tasks = []
            for _ in range(30):
                tasks.append(asyncio.create_task(pool.fetchval("SELECT 1")))
                await asyncio.sleep(0.001)
            await in_time(asyncio.gather(*tasks))
            queued.append(pool.stats().requests_queued - before)
        assert queued[-1] == 0, queued
        proxy.lag = 0


async def test_an_error_is_its_own_statements_alone(dsn: str) -> None:
    """Every second statement fails, each in another way; the others succeed."""
    async with sharing(dsn, min_size=1) as pool:
        await pool.execute("CREATE TEMP TABLE kept (x int PRIMARY KEY)")

        async def good(n: int) -> int:
            await pool.execute("INSERT INTO kept VALUES (%s)", [n])
            return cast("int", await pool.fetchval("SELECT x FROM kept WHERE x = %s", [n]))

        bad = [
            (pool.fetchval("SELECT 1/0"), psycopg.errors.DivisionByZero),
            (pool.fetchval("SELECT nothing"), psycopg.errors.UndefinedColumn),
            (pool.fetchval("SELECT %s", [1, 2]), psycopg.ProgrammingError),
            (pool.fetchval("SELECT %s", [object()]), psycopg.ProgrammingError),
            (pool.fetchall("INSERT INTO kept VALUES (-1)"), psycopg.ProgrammingError),
            (pool.execute("INSERT INTO kept VALUES (-1)"), psycopg.errors.UniqueViolation),
        ]
        outcomes = await asyncio.gather(
            *(work for n, (one, _) in enumerate(bad) for work in (good(n), one)),
            return_exceptions=True,
        )
        assert outcomes[::2] == list(range(len(bad)))
        for outcome, (_, kind) in zip(outcomes[1::2], bad, strict=True):
            assert isinstance(outcome, kind), outcome
        assert (await at_rest(pool)).connects == 1


async def test_what_changes_the_session_has_a_connection_of_its_own(dsn: str) -> None:
    """No other one-shot sees the session state that it leaves behind."""
    async with sharing(dsn, min_size=1) as pool:
        for text in (
            "SET LOCAL work_mem = '1MB'",
            "BEGIN; SELECT 1; COMMIT",
            "SELECT 1; SELECT 2",
            "DO $$ BEGIN END $$",
            "CREATE TEMP TABLE own (x int)",
            "/* a word /* nested */ */ LISTEN own",
            "EXPLAIN SELECT 1",
            "VACUUM pg_catalog.pg_namespace",
        ):
            await asyncio.gather(pool.execute(text), pool.execute("SELECT 1"))
        assert await pool.execute("BEGIN") == "BEGIN"
        await at_rest(pool)
        assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS x",
        b"SELECT 1 AS x",
        " -- why\n /* not */ (SELECT 1 AS x)",
        "WITH y AS (SELECT 1 AS x) SELECT x FROM y;",
        psycopg.sql.SQL("SELECT {} AS x").format(1),
    ],
)
async def test_every_way_to_say_it(dsn: str, query: Any) -> None:
    """Each type that psycopg accepts as a query works."""
    async with sharing(dsn, min_size=1, kwargs={"row_factory": dict_row}) as pool:
        assert await pool.fetchall(query) == [{"x": 1}]


async def test_a_slow_statement_holds_up_nobody_who_comes_later(
    dsn: str, backends: Backends
) -> None:
    """New requests use another connection, which is opened if necessary."""
    async with sharing(dsn, min_size=1, max_size=4) as pool:
        await pool.wait()
        slow = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: backends.running("pg_sleep"))
        for _ in range(20):
            assert await in_time(pool.fetchval("SELECT 1"), 10) == 1
        assert not slow.done()
        slow.cancel()


@pytest.mark.parametrize("seen", [[], [0.1], [0, 0, 0.1]])
async def test_nobody_is_sent_behind_what_may_be_slow(dsn: str, seen: list[float]) -> None:
    """A read that is new or was slow recently gets no others behind it, even in the same turn."""
    async with sharing(dsn, min_size=2, max_size=2) as pool:
        await pool.fetchval("SELECT 1")
        for seconds in seen:
            task = asyncio.create_task(pool.fetchval("SELECT pg_sleep(%s)", [seconds]))
            await asyncio.sleep(0.02)
            await pool.fetchval("SELECT 1")
            await task
        for _ in range(3):
            slow = asyncio.create_task(pool.fetchval("SELECT pg_sleep(%s)", [60]))
            await in_time(asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(20))), 10)
            assert not slow.done()
            slow.cancel()
            await at_rest(pool)


async def test_reads_that_wait_need_one_connection_together(dsn: str) -> None:
    """The pool does not grow for each read; the first connection that is released serves all."""
    async with sharing(dsn, min_size=2, max_size=8) as pool:
        await pool.wait()
        await seen_as_quick(pool, "SELECT 1")
        held = [await pool.acquire() for _ in range(2)]
        tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(9)]
        await asyncio.sleep(0)
        assert (pool.stats().waiting, pool.stats().opening) == (9, 1)
        assert await in_time(asyncio.gather(*tasks)) == [1] * 9
        for conn in held:
            await pool.release(conn)
        assert (await at_rest(pool)).connects <= 4


async def test_statements_that_may_be_slow_grow_the_pool_at_once(dsn: str) -> None:
    """The statements run in parallel, as for the same number of blocks."""
    async with sharing(dsn, min_size=1, max_size=6) as pool:
        await pool.wait()
        tasks = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(60)")) for _ in range(8)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pool.stats().opening == 5
        assert pool.stats().waiting == 7
        await eventually(lambda: pool.stats().leased == 6)
        assert pool.stats().waiting == 2
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await at_rest(pool)


async def test_borrowers_and_one_shots_do_not_starve_each_other(dsn: str) -> None:
    """With a single connection both make progress in turns."""
    async with sharing(dsn, min_size=1) as pool:
        stop = False
        shots = 0

        async def shoot() -> None:
            nonlocal shots
            while not stop:
                await pool.fetchval("SELECT 1")
                shots += 1

        tasks = [asyncio.create_task(shoot()) for _ in range(20)]
        for _ in range(50):
            before = shots
            async with pool.connection(timeout=10) as conn:
                await conn.execute("SELECT 1")
            await eventually(lambda before=before: shots > before)  # type: ignore[misc]
        stop = True
        await in_time(asyncio.gather(*tasks), 10)


async def test_one_shots_have_their_turn_however_many_borrow(dsn: str) -> None:
    """The wait queue is never empty, and one-shots wait in it like blocks."""
    async with sharing(dsn, min_size=2) as pool:
        stop = False

        async def borrow() -> None:
            while not stop:
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")

        tasks = [asyncio.create_task(borrow()) for _ in range(20)]
        await eventually(lambda: pool.stats().waiting > 5)
        for _ in range(20):
            shots = [pool.fetchval("SELECT %s::int", [n]) for n in range(10)]
            assert await in_time(asyncio.gather(*shots), 10) == list(range(10))
        stop = True
        await asyncio.gather(*tasks)


async def test_a_busy_connection_is_replaced_all_the_same(dsn: str) -> None:
    """`drain()` replaces a connection on which requests are always in flight."""
    async with sharing(dsn, min_size=1, max_size=2, shared_size=1) as pool:
        stop = False

        async def shoot() -> None:
            while not stop:
                await pool.fetchval("SELECT 1")

        tasks = [asyncio.create_task(shoot()) for _ in range(20)]
        before = await pool.fetchval("SELECT pg_backend_pid()")
        await pool.drain()
        for _ in range(1000):
            if await pool.fetchval("SELECT pg_backend_pid()") != before:
                break
        else:
            pytest.fail("it is there still")
        stop = True
        await asyncio.gather(*tasks)


async def test_explain_says_who_has_a_shared_connection(dsn: str) -> None:
    """The holder of a shared connection is "one-shot statements"; that of a write is its caller."""
    async with sharing(dsn, min_size=1) as pool:
        await pool.fetchval("SELECT 1")
        read = asyncio.create_task(pool.fetchval("SELECT 1"))
        await asyncio.sleep(0)
        assert "one-shot statements" in str(pool.explain())
        await read
        write = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"), name="a write")
        await eventually(lambda: "a write" in str(pool.explain()))
        write.cancel()


async def test_notifications_among_the_results_reach_their_handler(dsn: str) -> None:
    """The connection listens and is shared at the same time."""
    heard: list[str] = []

    async def listen(conn: psycopg.AsyncConnection[Any]) -> None:
        conn.add_notify_handler(lambda notify: heard.append(notify.payload))
        await conn.execute("LISTEN here")
        await conn.commit()

    async with sharing(dsn, min_size=1, configure=listen) as pool:
        await pool.fetchval("SELECT pg_notify('here', 'a word')")
        await eventually(lambda: heard == ["a word"])


async def one_slow_and_many_behind(
    pool: AsyncConnectionPool, backends: Backends
) -> tuple[asyncio.Task[str], list[asyncio.Task[Any]]]:
    """Send them in one turn of the loop on the pool's only connection."""
    await pool.wait()
    slow = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
    behind = [asyncio.create_task(pool.fetchval("SELECT %s::int", [n])) for n in range(20)]
    await eventually(lambda: backends.running("pg_sleep"))
    return slow, behind


async def test_a_cancelled_one_returns_at_once_and_ends_on_the_server(
    dsn: str, backends: Backends
) -> None:
    """The other statements, also those behind it, get their results."""
    async with sharing(dsn, min_size=1, shared_size=1) as pool:
        slow, behind = await one_slow_and_many_behind(pool, backends)
        slow.cancel()
        await asyncio.wait({slow}, timeout=1)
        assert slow.cancelled()
        assert await in_time(asyncio.gather(*behind), 10) == list(range(20))
        assert not backends.running("pg_sleep")
        assert (await at_rest(pool)).connects == 1


async def test_one_that_is_cancelled_before_it_was_sent_never_runs(dsn: str) -> None:
    """The one-shot waits for a connection that another task holds."""
    async with sharing(dsn, min_size=1) as pool:
        await pool.execute("DROP TABLE IF EXISTS never")
        await pool.execute("CREATE TABLE never (x int)")
        async with pool.connection():
            task = asyncio.create_task(pool.execute("INSERT INTO never VALUES (1)"))
            await eventually(lambda: pool.stats().waiting == 1)
            task.cancel()
            await asyncio.wait({task})
            assert pool.stats().waiting == 0
        assert await pool.fetchval("SELECT count(*) FROM never") == 0


async def test_a_changed_table_does_not_fail_a_prepared_statement(dsn: str) -> None:
    """The outdated plan is dropped and the statement is sent again."""
    async with sharing(dsn, min_size=2, shared_size=1) as pool:
        await pool.execute("DROP TABLE IF EXISTS changed")
        await pool.execute("CREATE TABLE changed (x int)")
        await pool.execute("INSERT INTO changed VALUES (1)")
        for _ in range(10):
            await pool.fetchall("SELECT * FROM changed")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            await other.execute("ALTER TABLE changed ADD y int DEFAULT 2")
        answers = await asyncio.gather(*(pool.fetchall("SELECT * FROM changed") for _ in range(20)))
        assert answers == [[(1, 2)]] * 20


async def test_statements_are_prepared_and_evicted(dsn: str) -> None:
    """psycopg and the server hold the same number of prepared statements."""
    async with sharing(dsn, min_size=1) as pool:
        async with pool.connection() as conn:
            conn.prepare_threshold = 0
            conn.prepared_max = 5
        for n in range(30):
            assert await pool.fetchval(f"SELECT {n}") == n
        kept = await pool.fetchval("SELECT count(*) FROM pg_prepared_statements")
        assert kept is not None
        assert 1 <= kept <= 7


async def test_without_prepared_statements(dsn: str) -> None:
    """With `prepare_threshold=None` nothing is prepared."""
    async with sharing(dsn, min_size=1, kwargs={"prepare_threshold": None}) as pool:
        for _ in range(20):
            await pool.fetchval("SELECT 1")
        assert await pool.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0


async def test_a_failed_preparation_is_not_its_followers_error(dsn: str) -> None:
    """Statements sent behind it under the same name report the true error too."""
    async with sharing(dsn, min_size=1, kwargs={"prepare_threshold": 0}, shared_size=1) as pool:
        failing = (pool.fetchval("SELECT * FROM no_such_table") for _ in range(5))
        for outcome in await asyncio.gather(*failing, return_exceptions=True):
            assert isinstance(outcome, psycopg.errors.UndefinedTable), outcome


async def test_large_values_both_ways(dsn: str) -> None:
    """Full buffers block neither the event loop nor client and server."""
    async with sharing(dsn, min_size=1, shared_size=1) as pool:
        value = "x" * 20_000_000
        many = [pool.fetchval("SELECT %s::text", [value]) for _ in range(3)]
        small = [pool.fetchval("SELECT 1") for _ in range(50)]
        answers = await in_time(asyncio.gather(*many, *small), 60)
        assert answers[:3] == [value] * 3
        assert answers[3:] == [1] * 50


async def test_a_server_that_goes_away_fails_them_with_its_own_error(
    dsn: str, backends: Backends
) -> None:
    """Statements behind the running one, which the server has not begun, run elsewhere."""
    async with sharing(dsn, min_size=1, shared_size=1) as pool:
        slow, behind = await one_slow_and_many_behind(pool, backends)
        backends.terminate()
        with pytest.raises(psycopg.errors.AdminShutdown):
            await slow
        assert await in_time(asyncio.gather(*behind), 20) == list(range(20))


async def test_one_that_was_not_sent_moves_when_the_connection_is_lost(
    dsn: str, backends: Backends
) -> None:
    """The one-shot waits behind a slow statement whose connection breaks."""
    async with Proxy(dsn) as proxy, sharing(proxy.dsn, min_size=1, shared_size=1) as pool:
        await pool.wait()
        slow = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: backends.running("pg_sleep"))
        behind = asyncio.create_task(pool.execute("SELECT 1"))
        await asyncio.sleep(0)
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            await slow
        assert await in_time(behind, 20) == "SELECT 1"
    backends.terminate()  # a backend in pg_sleep does not see that its client is gone


async def test_closing_the_pool_ends_them(dsn: str, backends: Backends) -> None:
    """The running statement, those behind it and those in the wait queue all end."""
    pool = sharing(dsn, min_size=1, shared_size=1)
    await pool.open(wait=True)
    tasks = [asyncio.create_task(pool.execute("SELECT pg_sleep(60)")) for _ in range(300)]
    await eventually(lambda: backends.running("pg_sleep"))
    await in_time(pool.close(timeout=0.1), 10)
    outcomes = await in_time(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert all(isinstance(outcome, psycopg.OperationalError) for outcome in outcomes)
    with pytest.raises(PoolClosed):
        await pool.fetchval("SELECT 1")


async def test_without_the_pipeline_each_borrows(dsn: str) -> None:
    """With `pipeline=False` each running statement uses a connection."""
    async with AsyncConnectionPool(dsn, min_size=3, pipeline=False) as pool:
        await pool.wait()
        tasks = [asyncio.create_task(pool.execute("SELECT pg_sleep(0.3)")) for _ in range(3)]
        await eventually(lambda: pool.stats().leased == 3)
        await asyncio.gather(*tasks)


async def test_a_libpq_without_a_pipeline_is_reported_and_works(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each one-shot then uses its own connection, and a batch takes more round trips."""
    monkeypatch.setattr("psycopg.capabilities.has_pipeline", lambda **_: False)
    monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    async with sharing(dsn, min_size=1) as pool:
        assert "libpq has no pipeline mode" in caplog.text
        assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(5))) == [1] * 5
        await pool.execute("CREATE TEMP TABLE shots (x int)")
        insert = "INSERT INTO shots VALUES (1)"
        assert await pool.batch([insert, "SELECT 2"]) == ["INSERT 0 1", [(2,)]]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pool.batch([insert, "SELECT 1/0"])
        assert await pool.fetchval("SELECT count(*) FROM shots") == 1
        assert pool.stats().requests_shared == 0


ODDITIES: list[tuple[str, Any]] = [
    ("SELECT %s", [None]),
    ("SELECT %s::int[]", [[1, None, 3]]),
    ("SELECT %s::jsonb", [Jsonb({"a": [1, None, "x"]})]),
    ("SELECT int4range(1, %s)", [5]),
    ("SELECT ROW(1, 'a', NULL)", None),
    ("SELECT %s::numeric, %s::float8, %s::bytea", ["1.50", 0.1, b"\x00\xff"]),
    ("SELECT now() - now(), date '2020-01-31', timestamptz '2020-01-01 00:00Z'", None),
    ("SELECT %s || 'é' || %s", ["ä", "\u20ac"]),
    ("SELECT", None),
    ("VALUES (1, 'a'), (2, NULL)", None),
    ("TABLE pg_catalog.pg_am", None),
    ("SELECT 1 WHERE false", None),
    ("SELECT x, repeat('y', x) FROM generate_series(1, 300) AS x", None),
    ("SELECT %s", ["no \x00 here"]),
    ("SELECT 'x'::int", None),
    ("SELECT * FROM missing", None),
    ("SELECT 1 +", None),
    ("SELECT %s, %s", [1]),
    ("SELECT %(a)s", [1]),
    ("UPDATE pg_catalog.pg_am SET amname = amname WHERE false", None),
    ("SELECT 1/%s", [0]),
    ("SELECT %s::date[], %s::timestamptz", [[date(2020, 1, 31)], datetime(2020, 1, 1, tzinfo=UTC)]),
    ("SELECT %s, %s::interval, %s::uuid", [True, timedelta(days=1, seconds=2), UUID(int=7)]),
    ("SELECT %s, %s, %s, %s", [1, 2**20, 2**40, 2**80]),
    ("SELECT %s::numeric, %s::numeric", [Decimal("1E-20"), Decimal("-1E+20")]),
    ("SELECT %s::tstzrange", [Range(datetime(2020, 1, 1, tzinfo=UTC), None)]),
    ("SELECT %(a)s::text, %(b)s::text, %(a)s::text", {"a": "x", "b": None}),
    ("SELECT repeat(%s, 200000)", ["big"]),
    ("SELECT %s::text", ["y" * 300_000]),
    ("SELECT ARRAY[ROW(1, 'a'), ROW(2, NULL)]", None),
    ("SELECT '100%%', %s", [1]),
    ("SELECT '100%'", None),
    ("WITH x AS (SELECT 1 AS y) SELECT y, count(*) FROM x GROUP BY y", None),
    ("DELETE FROM pg_catalog.pg_am WHERE false RETURNING amname", None),
    ("SELECT pg_catalog.lo_open(0, 0)", None),
    ("SELECT '{1,2}'::int[], '(1,2)'::point, '1.2.3.4'::inet, uuid_nil()", None),
]


@pytest.mark.exhaustive
async def test_the_same_as_on_a_connection_of_ones_own(dsn: str) -> None:
    """Rows, types and exceptions are equal in thousands of concurrent statements."""
    chance = random.Random(4)
    async with (
        sharing(dsn, min_size=2) as shared,
        AsyncConnectionPool(dsn, min_size=2, pipeline=False) as own,
    ):

        async def both(query: str, params: Any) -> None:
            for call in ("execute", "fetchall", "fetchone", "fetchval"):
                found = [
                    await asyncio.gather(getattr(pool, call)(query, params), return_exceptions=True)
                    for pool in (shared, own)
                ]
                one, two = (outcome[0] for outcome in found)
                if isinstance(two, BaseException):
                    assert type(one) is type(two), (query, one, two)
                    assert str(one) == str(two)
                elif "pg_am" not in query:
                    assert one == two, query
                    assert repr(one) == repr(two)

        for _ in range(20):
            work = [both(*chance.choice(ODDITIES)) for _ in range(50)]
            await asyncio.gather(*work)


async def test_a_setting_that_changes_is_seen_in_the_next_rows(dsn: str) -> None:
    """A changed setting renews the cached loaders of rows."""
    async with sharing(dsn, min_size=1, shared_size=1) as pool:
        busy = [asyncio.create_task(pool.execute("SELECT pg_sleep(0.001)")) for _ in range(100)]
        moment = "SELECT timestamptz '2020-06-01 12:00:00+00'"
        for zone, offset in (("UTC", 0), ("Europe/Berlin", 2), ("UTC", 0)):
            await pool.fetchval("SELECT set_config('TimeZone', %s, false)", [zone])
            value = cast("datetime", await pool.fetchval(moment))
            assert value.utcoffset() == timedelta(hours=offset)
        await asyncio.gather(*busy)


async def test_what_a_borrower_registers_is_seen_afterwards(dsn: str) -> None:
    """The cached loaders of rows are renewed after each lease of the connection."""
    async with sharing(dsn, min_size=1, max_size=1) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        async with pool.connection() as conn:
            conn.adapters.register_loader("int4", TextLoader)
        assert await pool.fetchval("SELECT 1") == "1"


async def test_prepare_is_as_for_a_cursor(dsn: str) -> None:
    """True prepares at once, False never, None from the sixth execution on."""
    mine = "SELECT count(*) FROM pg_prepared_statements WHERE statement = %s"
    async with sharing(dsn, min_size=1, shared_size=1) as pool:
        for prepare, query, times, expected in (
            (True, "SELECT 'at once'", 1, 1),
            (False, "SELECT 'never'", 20, 0),
            (None, "SELECT 'later'", 5, 0),
            (None, "SELECT 'later'", 1, 1),
        ):
            for _ in range(times):
                await pool.fetchval(query, prepare=prepare)
            assert await pool.fetchval(mine, [query]) == expected, (query, times)


async def test_binary_results(dsn: str) -> None:
    """Values are equal, also next to the same statement in text format."""
    async with sharing(dsn, min_size=1, shared_size=1) as pool:
        query = "SELECT 1.5::float8, %s::bytea, now()::timestamptz - now()"
        for call in (pool.fetchall, pool.fetchone, pool.fetchval):
            one, two = await asyncio.gather(
                *(call(query, [b"\x00"], binary=binary) for binary in (True, False))
            )
            assert one == two


async def test_they_are_counted_as_requests(dsn: str) -> None:
    """Each one-shot counts as one request, whatever its outcome."""
    async with sharing(dsn, min_size=1, max_size=1, timeout=60) as pool:
        await pool.fetchval("SELECT 1")  # now known to be quick
        await at_rest(pool)
        before = pool.stats()
        await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(20)))
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pool.fetchval("SELECT 1/0")
        async with pool.connection():
            waiting = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(PoolTimeout):
                await pool.fetchval("SELECT 1", timeout=0.01)
            waiting[0].cancel()
            await asyncio.wait({waiting[0]})
        assert await waiting[1] == 1
        await at_rest(pool)
        now = pool.stats()
        assert now.requests_shared - before.requests_shared == 21  # one was new
        assert now.requests_failed - before.requests_failed == 1
        assert now.requests_cancelled - before.requests_cancelled == 1
        assert now.requests_queued - before.requests_queued == 3
        assert now.requests - before.requests == 25
        assert now.wait_time > before.wait_time


@pytest.mark.parametrize("prepare", [False, True])
async def test_a_cancel_request_that_hits_the_next_statement_costs_it_nothing(
    dsn: str, table: str, backends: Backends, monkeypatch: pytest.MonkeyPatch, prepare: bool
) -> None:
    """A read that it hits is sent again, also while the server prepares it."""
    before = f"SELECT count(*) FROM {table}"
    after = f"SELECT sum(1) FROM {table}"
    hits = 0

    async def cancel_too_long(conn: Any, end: Any) -> None:
        nonlocal hits
        await cancel_until_ended(conn, None)
        await end
        # The server signals twice for each cancel request, so the statement may be hit already.
        await eventually(lambda: backends.running(after) or pool.stats().waiting)
        await cancel_until_ended(conn, None)  # a request that is late
        hits += 1

    monkeypatch.setattr(channels, "cancel_until_ended", cancel_too_long)
    async with sharing(dsn, min_size=1, max_size=1, timeout=60) as pool:
        for query in (before, after):
            await seen_as_quick(pool, query, prepare=False)
        with psycopg.connect(dsn) as other:
            other.execute(f"LOCK TABLE {table}".encode())
            first = asyncio.create_task(pool.execute(before))
            behind = asyncio.create_task(pool.fetchval(after, prepare=prepare))
            await asyncio.sleep(0)
            first.cancel()
            await eventually(lambda: hits)
            await eventually(lambda: backends.running(after))
        assert await in_time(behind) is None
        assert (await at_rest(pool)).connects == 1


HUGE = 100 << 20


async def test_what_is_huge_neither_blocks_the_loop_nor_its_neighbours(dsn: str) -> None:
    """100 MB go both ways on the only connection while other requests run."""
    async with sharing(dsn, min_size=1, max_size=1, timeout=60) as pool:
        for query in ("SELECT 1", "SELECT %s::bytea"):  # both are known to be quick
            await pool.fetchval(query, [b""] if "%" in query else None)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        try:
            huge = asyncio.create_task(
                pool.fetchval("SELECT %s::bytea", [bytes(HUGE)], binary=True)
            )
            await asyncio.sleep(0)
            small = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(20)]
            assert await in_time(asyncio.gather(*small), 60) == [1] * 20
            assert await in_time(huge, 60) == bytes(HUGE)
            assert turns > 100
        finally:
            counting.cancel()
        assert (await at_rest(pool)).connects == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly since Python 3.12")
async def test_where_tasks_start_eagerly_it_is_the_same(dsn: str, backends: Backends) -> None:
    """A new task, of a cancel request or a caller, then runs before its creator goes on."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop's tasks do not start eagerly on every Python")
    loop.set_task_factory(asyncio.eager_task_factory)
    async with sharing(dsn, min_size=1, max_size=3, timeout=60) as pool:
        held = await pool.acquire()
        answers = asyncio.gather(*(pool.fetchval("SELECT %s::int", [n]) for n in range(300)))
        await eventually(lambda: pool.stats().waiting)
        await pool.release(held)
        assert await in_time(answers) == list(range(300))
        tasks = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(60)")) for _ in range(5)]
        await eventually(lambda: backends.running("pg_sleep") == 3)
        for task in tasks:
            task.cancel()
        await in_time(asyncio.wait(tasks))
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        await at_rest(pool)
    loop.set_task_factory(None)


@pytest.mark.exhaustive
async def test_no_write_is_lost_or_done_twice_in_chaos(dsn: str, backends: Backends) -> None:
    """Errors, cancellations, kills and slow statements at random, compared with a table."""
    chance = random.Random(7)
    async with sharing(dsn, min_size=2, max_size=4, timeout=60) as pool:
        await pool.execute("DROP TABLE IF EXISTS booked")
        await pool.execute("CREATE TABLE booked (n int CHECK (n % 17 <> 0))")
        done: set[int] = set()
        unknown: set[int] = set()
        refused: set[int] = set()

        async def book(n: int) -> None:
            try:
                await pool.execute("INSERT INTO booked VALUES (%s)", [n])
            except psycopg.errors.CheckViolation:
                refused.add(n)
            except (psycopg.OperationalError, asyncio.CancelledError):
                unknown.add(n)
            else:
                done.add(n)

        async def slow() -> None:
            with suppress(psycopg.OperationalError):
                await pool.execute("SELECT pg_sleep(%s)", [chance.uniform(0, 0.05)])

        tasks: list[asyncio.Task[None]] = []
        for n in range(1, 6001):
            tasks.append(asyncio.create_task(book(n)))
            if chance.random() < 0.02:
                tasks.append(asyncio.create_task(slow()))
            if chance.random() < 0.05:
                chance.choice(tasks).cancel()
            if chance.random() < 0.003:
                backends.terminate()
            if chance.random() < 0.1:
                await asyncio.sleep(chance.uniform(0, 0.002))
        await in_time(asyncio.gather(*tasks, return_exceptions=True), 60)
        await at_rest(pool)
        rows = [n for (n,) in await pool.fetchall("SELECT n FROM booked")]
        assert len(rows) == len(set(rows)), "done twice"
        assert done <= set(rows)
        assert not refused & set(rows)
        assert set(rows) <= done | unknown
        assert len(done) > 1000
