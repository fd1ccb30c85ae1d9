"""One-shots: one statement by itself, in one round trip, without a transaction around it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import class_row, dict_row, scalar_row

from asyncpool import AsyncConnectionPool, PoolTimeout

from ._tools import Proxy, all_usable, at_rest, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._tools import Backends

    Shot = Callable[[AsyncConnectionPool], Awaitable[Any]]


@pytest.fixture(autouse=True, params=[True, False], ids=["sharing", "borrowing"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with and without the pipeline."""
    defaults = AsyncConnectionPool.__init__.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "pipeline", request.param)


SHOTS: dict[str, Shot] = {
    "execute": lambda pool: pool.execute("INSERT INTO shots VALUES (%s)", [1]),
    "fetchall": lambda pool: pool.fetchall("SELECT %s::int", [1]),
    "fetchone": lambda pool: pool.fetchone("SELECT %s::int", [1]),
    "fetchval": lambda pool: pool.fetchval("SELECT %s::int", [1]),
    "executemany": lambda pool: pool.executemany(
        "INSERT INTO shots VALUES (%s)", [[number] for number in range(20)]
    ),
    "batch": lambda pool: pool.batch(
        [("INSERT INTO shots VALUES (%s)", [1]), "SELECT 1", ("SELECT %s::int", [2])]
    ),
    "executemany of one": lambda pool: pool.executemany("INSERT INTO shots VALUES (%s)", [[1]]),
}


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("shot", SHOTS)
async def test_a_one_shot_takes_one_round_trip(dsn: str, shot: str, autocommit: bool) -> None:
    """There is no BEGIN and no COMMIT, also when psycopg prepares the statement."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, kwargs={"autocommit": autocommit}) as pool,
    ):
        await pool.execute("CREATE TEMP TABLE shots (x int)")
        turns = []
        for _ in range(8):
            before = proxy.turns
            await SHOTS[shot](pool)
            await at_rest(pool)
            turns.append(proxy.turns - before)
        # The sixth time psycopg prepares the statement, which is a round trip of its own.
        assert [turns[0], turns[-1]] == [1, 1], turns
        assert sum(turns) <= 9


@dataclass
class Order:
    """A row as an object."""

    id: int
    item: str


@pytest.mark.parametrize("pipeline", [True, False])
async def test_rows_are_made_by_the_row_factory_that_is_given(dsn: str, pipeline: bool) -> None:
    """Of this call alone, on a channel, a borrowed connection or a session's."""
    query = "SELECT n AS id, 'tea' AS item FROM generate_series(1, %s) n"
    orders = [Order(1, "tea"), Order(2, "tea")]
    async with AsyncConnectionPool(dsn, min_size=1, pipeline=pipeline) as pool:

        async def check() -> None:
            for _ in range(3):
                assert await pool.fetchall(query, [2], row_factory=class_row(Order)) == orders
                assert await pool.fetchone(query, [2], row_factory=class_row(Order)) == orders[0]
                assert await pool.fetchone(query, [0], row_factory=class_row(Order)) is None
                assert await pool.fetchall("VALUES (3), (4)", row_factory=scalar_row) == [3, 4]
                assert await pool.fetchall(query, [1]) == [(1, "tea")]
            with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
                await pool.fetchall("SELECT 1 AS other", row_factory=class_row(Order))

        await check()
        async with pool.session():
            await check()
        await at_rest(pool)


async def test_a_one_shot_is_committed_by_itself(dsn: str) -> None:
    """Another connection sees the result at once."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        assert await pool.execute("DROP TABLE IF EXISTS shots") == "DROP TABLE"
        assert await pool.execute("CREATE TABLE shots (x int)") == "CREATE TABLE"
        assert await pool.execute("INSERT INTO shots VALUES (1), (2)") == "INSERT 0 2"
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            cur = await other.execute("SELECT count(*) FROM shots")
            assert await cur.fetchone() == (2,)
        assert await pool.execute("DROP TABLE shots") == "DROP TABLE"


async def test_statements_that_refuse_a_transaction_work(dsn: str) -> None:
    """VACUUM and similar statements work, as there is no transaction around them."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        assert await pool.execute("VACUUM pg_catalog.pg_namespace") == "VACUUM"


async def test_what_comes_back(dsn: str) -> None:
    """Return all rows, the first row, or its first column; without rows an empty list or None."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        two = "SELECT x, -x FROM generate_series(1, 2) AS x ORDER BY x"
        assert await pool.fetchall(two) == [(1, -1), (2, -2)]
        assert await pool.fetchone(two) == (1, -1)
        assert await pool.fetchval(two) == 1
        none = "SELECT 1 WHERE false"
        assert await pool.fetchall(none) == []
        assert await pool.fetchone(none) is None
        assert await pool.fetchval(none) is None
        assert await pool.fetchval("SELECT NULL") is None
        assert await pool.fetchval("SELECT %(a)s::int + %(b)s::int", {"a": 1, "b": 2}) == 3
        assert await pool.fetchval(psycopg.sql.SQL("SELECT {}").format(7)) == 7
        assert await pool.fetchval(b"SELECT 8") == 8


async def test_rows_are_made_by_the_connections_factory(dsn: str) -> None:
    """`fetchval` does not use the factory and does not change it."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"row_factory": dict_row}) as pool:
        assert await pool.fetchone("SELECT 1 AS x") == {"x": 1}
        assert await pool.fetchall("SELECT 1 AS x") == [{"x": 1}]
        assert await pool.fetchval("SELECT 1 AS x, 2 AS y") == 1
        assert await pool.fetchone("SELECT 1 AS x") == {"x": 1}


async def test_executemany_is_all_or_nothing(dsn: str) -> None:
    """A failing set of values undoes those before it; the row count is the total."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.execute("CREATE TEMP TABLE shots (x int CHECK (x < 5))")
        insert = "INSERT INTO shots VALUES (%s), (%s)"
        assert await pool.executemany(insert, [(1, 2), (3, 4)]) == 4
        with pytest.raises(psycopg.errors.CheckViolation):
            await pool.executemany(insert, [(1, 2), (3, 5), (1, 1)])
        assert await pool.fetchval("SELECT count(*) FROM shots") == 4
        assert await pool.executemany(insert, []) == 0
        assert (await at_rest(pool)).connects == 1


@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_failed_one_shot_leaves_a_good_connection(dsn: str, autocommit: bool) -> None:
    """psycopg's own error is raised, the mode is unchanged, and the connection is kept."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": autocommit}) as pool:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pool.fetchval("SELECT 1/0")
        with pytest.raises(psycopg.ProgrammingError):
            await pool.fetchval("SELECT %s", [1, 2])
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
            await pool.fetchall("SET x.y = 1")
        async with pool.connection() as conn:
            assert conn.autocommit is autocommit
        assert (await at_rest(pool)).connects == 1


async def test_one_shots_and_blocks_do_not_change_each_others_mode(dsn: str) -> None:
    """A block after a one-shot is a transaction; a one-shot after a block is not."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for _ in range(3):
            assert await pool.fetchval("SELECT 1") == 1
            async with pool.connection() as conn:
                assert not conn.autocommit
                await conn.execute("SELECT 1")
                assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS


async def test_many_one_shots_share_the_connections(dsn: str) -> None:
    """With more tasks than connections each task gets its own answer."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=4) as pool:
        numbers = [pool.fetchval("SELECT %s::int", [number]) for number in range(200)]
        assert await asyncio.gather(*numbers) == list(range(200))
        assert (await at_rest(pool)).size <= 4
        await all_usable(pool)


async def test_a_one_shot_waits_no_longer_than_its_timeout(dsn: str) -> None:
    """`timeout` limits the wait for a connection."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection():
            for shot in (pool.execute, pool.fetchall, pool.fetchone, pool.fetchval):
                with pytest.raises(PoolTimeout):
                    await shot("SELECT 1", timeout=0.01)
            with pytest.raises(PoolTimeout):
                await pool.executemany("SELECT %s", [[1]], timeout=0.01)
        assert await pool.fetchval("SELECT 1", timeout=0) == 1


@pytest.mark.parametrize("pipeline", [False, True])
async def test_a_time_limit_is_the_whole_calls(
    dsn: str, backends: Backends, pipeline: bool
) -> None:
    """A statement that takes longer is cancelled on the server; its connection is kept."""
    async with AsyncConnectionPool(dsn, min_size=1, pipeline=pipeline) as pool:
        await pool.wait()
        for shot in (pool.execute, pool.fetchall, pool.fetchone, pool.fetchval):
            with pytest.raises(PoolTimeout, match=r"no answer within .*may have run"):
                await shot("SELECT pg_sleep(60)", timeout=0.1)
            await at_rest(pool)
        with pytest.raises(PoolTimeout, match=r"no answer within .*may have run"):
            await pool.executemany("SELECT pg_sleep(%s)", [[60]], timeout=0.1)
        await eventually(lambda: not backends.running("pg_sleep"))
        assert await pool.fetchval("SELECT 1", timeout=10) == 1
        assert (await at_rest(pool)).connects == 1


@pytest.mark.parametrize(("timeout", "kind"), [("5", TypeError), (-1, ValueError)])
@pytest.mark.parametrize("call", ["execute", "executemany", "batch"])
async def test_a_time_limit_that_is_none_is_refused_before_a_connection_is_borrowed(
    dsn: str, call: str, timeout: Any, kind: type[Exception]
) -> None:
    """No lease is left that nobody ends."""
    calls: dict[str, Shot] = {
        "execute": lambda pool: pool.execute("SELECT 1; SELECT 2", timeout=timeout),
        "executemany": lambda pool: pool.executemany("SELECT %s", [[1]], timeout=timeout),
        "batch": lambda pool: pool.batch(["SELECT 1"], timeout=timeout),
    }
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        with pytest.raises(kind, match="timeout must be"):
            await calls[call](pool)
        assert pool.stats().leased == 0


async def test_a_batch_gives_rows_or_tags(dsn: str) -> None:
    """The results come in the order of the statements."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"row_factory": dict_row}) as pool:
        for _ in range(8):  # also once they are prepared
            given = await pool.batch(
                [
                    "CREATE TEMP TABLE IF NOT EXISTS shots (x int)",
                    ("INSERT INTO shots VALUES (%s), (%s)", [1, 2]),
                    ("SELECT %(x)s::int AS x", {"x": 3}),
                    psycopg.sql.SQL("SELECT 4 AS x"),
                    b"SELECT 5 AS x WHERE false",
                    "DROP TABLE shots",
                ]
            )
            assert given == ["CREATE TABLE", "INSERT 0 2", [{"x": 3}], [{"x": 4}], [], "DROP TABLE"]
        assert await pool.batch([]) == []
        assert (await at_rest(pool)).connects == 1


@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_batch_is_all_or_nothing(dsn: str, autocommit: bool) -> None:
    """If one statement fails or cannot be sent, its error is raised and none has an effect."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": autocommit}) as pool:
        await pool.execute("CREATE TEMP TABLE shots (x int PRIMARY KEY)")
        first = ("INSERT INTO shots VALUES (%s)", [1])
        for failing, kind in (
            (first, psycopg.errors.UniqueViolation),
            (("SELECT %s", [1, 2]), psycopg.ProgrammingError),
            (("SELECT %s", [object()]), psycopg.ProgrammingError),
            ("SELECT 1; SELECT 2", psycopg.errors.SyntaxError),
        ):
            for statements in ([first, failing], [first, failing, "SELECT 1"]):
                with pytest.raises(kind) as caught:
                    await pool.batch(statements)
                assert not isinstance(caught.value, psycopg.errors.PipelineAborted)
                assert await pool.fetchval("SELECT count(*) FROM shots") == 0
        with pytest.raises(TypeError, match="query or"):
            await pool.batch([first, ("SELECT 1", [], None)])  # type: ignore[list-item]
        await pool.batch([first])
        assert await pool.fetchval("SELECT count(*) FROM shots") == 1
        assert (await at_rest(pool)).connects == 1


async def test_a_batch_that_is_cancelled_or_late_has_not_happened(
    dsn: str, backends: Backends
) -> None:
    """The batch has no effect, and its connection stays usable."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.execute("CREATE TEMP TABLE shots (x int)")
        slow = ["INSERT INTO shots VALUES (1)", "SELECT pg_sleep(60)"]
        with pytest.raises(PoolTimeout):
            await pool.batch(slow, timeout=0.1)
        task = asyncio.create_task(pool.batch(slow))
        await eventually(lambda: backends.running("pg_sleep"))
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert await pool.fetchval("SELECT count(*) FROM shots") == 0
        assert (await at_rest(pool)).connects == 1


@pytest.mark.parametrize("values", [[5], (5,), 5])
@pytest.mark.parametrize("call", ["execute", "fetchall", "fetchone", "fetchval"])
async def test_numbered_placeholders_are_explained(dsn: str, call: str, values: Any) -> None:
    """The error names psycopg's placeholder; nothing is sent."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.ProgrammingError, match="placeholder is %s, not \\$1"):
            await getattr(pool, call)("SELECT $1::int", values)
        assert await pool.fetchval("SELECT %s::int", [5]) == 5


@pytest.mark.parametrize(
    ("value", "said"),
    [(1, "^a row wants two arguments$"), (object(), "^cannot adapt type 'object'[^$]*$")],
    ids=["row factory", "value"],
)
async def test_an_error_of_something_else_than_placeholders_stays_as_it_is(
    dsn: str, value: object, said: str
) -> None:
    """Though the text has a dollar sign and a number in it."""

    def refuse(_: object) -> Any:
        raise TypeError("a row wants two arguments")

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        conn.row_factory = lambda _: refuse

    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        with pytest.raises((TypeError, psycopg.ProgrammingError), match=said):
            await pool.fetchone("SELECT %s, 'costs $5'", [value])
