"""`transaction(...)` with characteristics, settings and a role of its own."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import IsolationLevel

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, TooManyRequests

from ._tools import LIMIT, Backends, Proxy, all_usable, at_rest, in_time, needs_internals

CLASSES = pytest.mark.parametrize("own", [None, psycopg.AsyncConnection], ids=["ours", "psycopg"])
NOW = (
    "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
    " current_setting('transaction_deferrable')"
)
USUAL = ("read committed", "off", "off")


def class_of(own: Any) -> dict[str, Any]:
    """Return the pool's arguments for a connection class."""
    return {} if own is None else {"connection_class": own}


async def characteristics(conn: Any) -> tuple[str, str, str]:
    cur = await conn.execute(NOW)
    row: tuple[str, str, str] = await cur.fetchone()
    return row


async def setting(conn: Any, name: str) -> str | None:
    cur = await conn.execute("SELECT nullif(current_setting(%s, true), '')", [name])
    (value,) = await cur.fetchone()
    assert value is None or isinstance(value, str)
    return value


@CLASSES
@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_transaction_has_the_characteristics_that_it_is_given(
    dsn: str, own: Any, autocommit: bool
) -> None:
    """The connection's next transaction has its own again."""
    async with AsyncConnectionPool(
        dsn, min_size=1, kwargs={"autocommit": autocommit}, **class_of(own)
    ) as pool:
        for level in ("serializable", IsolationLevel.REPEATABLE_READ):
            name = level if isinstance(level, str) else level.name.lower().replace("_", " ")
            async with pool.transaction(isolation=level) as conn:
                assert await characteristics(conn) == (name, "off", "off")
            async with pool.transaction() as conn:
                assert await characteristics(conn) == USUAL
        async with pool.transaction(
            isolation="serializable", read_only=True, deferrable=True
        ) as conn:
            assert await characteristics(conn) == ("serializable", "on", "on")
        async with pool.transaction(read_only=True) as conn:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                async with conn.transaction():
                    await conn.execute("CREATE TABLE refused (x int)")
        async with pool.connection() as conn:
            assert await characteristics(conn) == USUAL
            assert (conn.isolation_level, conn.read_only, conn.deferrable) == (None,) * 3
        assert (await at_rest(pool)).connects == 1


@CLASSES
async def test_what_is_not_given_is_the_connections(dsn: str, own: Any) -> None:
    """Its own characteristics, as `configure` has set them."""

    async def configure(conn: Any) -> None:
        await conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        await conn.set_read_only(True)

    async with AsyncConnectionPool(dsn, min_size=1, configure=configure, **class_of(own)) as pool:
        async with pool.transaction(read_only=False) as conn:
            assert await characteristics(conn) == ("repeatable read", "off", "off")
        async with pool.transaction() as conn:
            assert await characteristics(conn) == ("repeatable read", "on", "off")


@CLASSES
@pytest.mark.parametrize("ends", ["well", "badly", "by hand"])
async def test_settings_and_role_end_with_their_transaction(
    dsn: str, backends: Backends, role: str, own: Any, ends: str
) -> None:
    """They are those of SET LOCAL; the connection keeps none of them."""
    async with AsyncConnectionPool(dsn, min_size=1, **class_of(own)) as pool:
        values: dict[str, Any] = {"app.tenant": 7, "app.name": "O'Neil \\ é", "app.on": True}
        values["work_mem"] = "123kB"
        options = {"settings": values, "role": role}
        try:
            async with pool.transaction(**options) as conn:  # type: ignore[arg-type]
                assert await setting(conn, "app.tenant") == "7"
                assert await setting(conn, "app.name") == "O'Neil \\ é"
                assert await setting(conn, "app.on") == "on"
                assert await setting(conn, "work_mem") == "123kB"
                cur = await conn.execute("SELECT current_user")
                assert await cur.fetchone() == (role,)
                if ends == "badly":
                    raise ZeroDivisionError
                if ends == "by hand":
                    raise psycopg.Rollback
        except ZeroDivisionError:
            pass
        async with pool.connection() as conn:
            assert await setting(conn, "app.tenant") is None
            assert await setting(conn, "work_mem") != "123kB"
            cur = await conn.execute("SELECT current_user = session_user")
            assert await cur.fetchone() == (True,)
        assert (await at_rest(pool)).connects == 1


@needs_internals
async def test_options_take_no_round_trip_of_their_own(dsn: str) -> None:
    """They are sent with BEGIN, which is sent with the first statement."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        turns = []
        for options in (
            {},
            {"isolation": "serializable"},
            {"settings": {"app.tenant": "7"}},
            {"isolation": "serializable", "read_only": True, "settings": {"app.tenant": "7"}},
        ):
            await at_rest(pool)
            before = proxy.turns
            async with pool.transaction(**options) as conn:
                await conn.execute("SELECT 1")
            await at_rest(pool)
            turns.append(proxy.turns - before)
        assert turns == [2, 2, 2, 2]


@CLASSES
async def test_a_setting_that_the_server_refuses_is_an_error_before_any_statement(
    dsn: str, own: Any
) -> None:
    """The first statement does not run, and the connection is used again."""

    async def run(pool: AsyncConnectionPool[Any], options: Any) -> None:
        async with pool.transaction(**options) as conn:
            await conn.execute("SELECT 1")
            raise AssertionError("it has run")

    async with AsyncConnectionPool(dsn, min_size=1, **class_of(own)) as pool:
        for options, error in (
            ({"settings": {"no_such_setting": "1"}}, psycopg.errors.UndefinedObject),
            ({"settings": {"work_mem": "much"}}, psycopg.errors.InvalidParameterValue),
            ({"role": "nobody at all"}, psycopg.errors.InvalidParameterValue),
        ):
            with pytest.raises(error):
                await run(pool, options)
            async with pool.transaction() as conn:
                await conn.execute("SELECT 1")
        assert (await at_rest(pool)).connects == 1


async def test_bad_options_are_errors_at_the_call(dsn: str) -> None:
    """No connection is borrowed; the message has the name and the value."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for options, error, words in (
            (
                {"isolation": "snapshot"},
                ValueError,
                "isolation must be .*'serializable'.*'snapshot'",
            ),
            ({"isolation": 3}, TypeError, "isolation must be"),
            ({"read_only": "yes"}, TypeError, "read_only must be True, False or None, not 'yes'"),
            ({"deferrable": 1}, TypeError, "deferrable must be"),
            ({"settings": {"app.x": None}}, TypeError, "'app.x': None"),
            ({"settings": {1: "x"}}, TypeError, "1: 'x'"),
            ({"settings": {"": "x"}}, ValueError, "needs a name"),
            ({"settings": {"app.x": "a\0b"}}, ValueError, "NUL"),
            ({"role": ""}, ValueError, "role must not be empty"),
        ):
            with pytest.raises(error, match=words):
                pool.transaction(**options)
            with pytest.raises(error, match=words):
                await pool.run_transaction(characteristics, **options)
        assert pool.stats().requests == 0


async def test_in_a_session_the_options_need_a_transaction_of_their_own(dsn: str) -> None:
    """A savepoint cannot have them; without an open transaction they are the block's."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.session() as conn:
        for _ in range(2):
            async with pool.transaction(isolation="serializable", settings={"app.t": 1}) as it:
                assert it is conn
                assert (await characteristics(conn))[0] == "serializable"
                assert await setting(conn, "app.t") == "1"
            assert await setting(conn, "app.t") is None
            # The query above has begun a transaction.
            with pytest.raises(psycopg.ProgrammingError, match="a transaction is open"):
                async with pool.transaction(isolation="serializable"):
                    raise AssertionError("it was entered")
            assert await characteristics(conn) == USUAL
            await conn.commit()


async def test_pools_of_each_kind_take_options(dsn: str) -> None:
    """A subclass that overrides `getconn`, and the null pool."""

    class Counting(AsyncConnectionPool[Any]):
        borrowed = 0

        async def getconn(self, timeout: float | None = None, **kwargs: Any) -> Any:
            self.borrowed += 1
            return await super().getconn(timeout, **kwargs)

    async with Counting(dsn, min_size=1) as pool, AsyncNullConnectionPool(dsn) as null:
        for each in (pool, null):
            async with each.transaction(read_only=True, settings={"app.tenant": 7}) as conn:
                assert await characteristics(conn) == ("read committed", "on", "off")
                assert await setting(conn, "app.tenant") == "7"
        assert pool.borrowed == 1


@pytest.mark.parametrize("kind", ["cancel", "twice", "scope"])
async def test_no_cancellation_leaves_a_tenant_behind(
    dsn: str, backends: Backends, role: str, kind: str
) -> None:
    """Each block sees its own tenant only, wherever others were stopped."""
    rng = random.Random(kind)
    async with AsyncConnectionPool(dsn, min_size=2, max_size=2) as pool:
        await pool.wait()
        stopped = seen = 0

        async def work(tenant: int) -> None:
            nonlocal seen
            options: dict[str, Any] = {"settings": {"app.tenant": tenant}, "role": role}
            async with pool.transaction(**options) as conn:
                for _ in range(2):
                    assert await setting(conn, "app.tenant") == str(tenant)
                    seen += 1

        async def other() -> None:
            async with pool.connection() as conn:
                assert await setting(conn, "app.tenant") is None
                cur = await conn.execute("SELECT current_user = session_user")
                assert await cur.fetchone() == (True,)

        async def caller(number: int) -> None:
            nonlocal stopped
            for turn in range(25):
                pause = rng.choice([0, 0.0002, 0.0005, 0.001, 0.002, LIMIT])
                if kind == "scope":
                    # A request that could not be served in time is refused, in such a storm.
                    with (
                        contextlib.suppress(TooManyRequests),
                        anyio.move_on_after(pause) as scope,
                    ):
                        await work(100 * number + turn)
                    stopped += scope.cancelled_caught
                else:
                    task = asyncio.ensure_future(work(100 * number + turn))
                    await asyncio.wait({task}, timeout=pause)
                    task.cancel()
                    if kind == "twice":
                        await asyncio.sleep(0)
                        task.cancel()
                    await asyncio.wait({task})
                    stopped += task.cancelled()
                    if not task.cancelled():
                        with contextlib.suppress(TooManyRequests):
                            task.result()
                with contextlib.suppress(TooManyRequests):
                    await other()

        await in_time(asyncio.gather(*map(caller, range(6))), 60.0)
        assert stopped > 10
        assert seen > 10
        await all_usable(pool)


async def test_row_level_security_shows_each_tenant_its_rows(
    dsn: str, backends: Backends, table: str, role: str
) -> None:
    """The pool's own role sees all of them, the tenants' role those of its setting."""
    backends.ask(f"INSERT INTO {table} VALUES (1), (1), (2)")
    backends.ask(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    backends.ask(f"GRANT SELECT ON {table} TO {role}")
    mine = "x = current_setting('app.tenant')::int"
    backends.ask(f"CREATE POLICY own_rows ON {table} USING ({mine})")
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for tenant, count in ((1, 2), (2, 1), (3, 0)):
            async with pool.transaction(settings={"app.tenant": tenant}, role=role) as conn:
                cur = await conn.execute(f"SELECT count(*) FROM {table}")
                assert await cur.fetchone() == (count,)
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 3
