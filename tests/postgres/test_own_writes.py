"""`cluster.own_writes()`: what is written in a context is read in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from asyncpool import Cluster
from asyncpool._cluster.token import Token
from asyncpool._psycopg.internals import SUPPORTED

from ._pair import Pair, opened, started_pair
from ._tools import in_time, needs_internals

Write = Callable[[Cluster[Any], str], Awaitable[object]]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The servers of this module."""
    with started_pair() as pair:
        yield pair


@pytest.fixture
def notes(pair: Pair) -> str:
    """The name of a table `(x int)` that both have."""
    name = f"t_{uuid4().hex[:12]}"
    pair.on_primary(f"CREATE TABLE {name} (x int)")
    pair.catch_up()
    return name


async def by_connection(cluster: Cluster[Any], insert: str) -> None:
    async with cluster.write.connection() as conn:
        await conn.execute(insert)


async def by_explicit_commit(cluster: Cluster[Any], insert: str) -> None:
    async with cluster.write.connection() as conn:
        await conn.execute(insert)
        await conn.commit()


async def by_autocommit(cluster: Cluster[Any], insert: str) -> None:
    async with cluster.write.cursor(autocommit=True) as cur:
        await cur.execute(insert)


async def by_transaction(cluster: Cluster[Any], insert: str) -> None:
    async with cluster.write.transaction() as conn:
        await conn.execute(insert)


async def by_run_transaction(cluster: Cluster[Any], insert: str) -> None:
    await cluster.write.run_transaction(lambda conn: conn.execute(insert), isolation="serializable")


async def by_session(cluster: Cluster[Any], insert: str) -> None:
    async with cluster.write.session():
        await cluster.write.execute(insert)


async def by_block_in_a_session(cluster: Cluster[Any], insert: str) -> None:
    async with cluster.write.session(), cluster.write.transaction() as conn:
        await conn.execute(insert)


async def by_acquire(cluster: Cluster[Any], insert: str) -> None:
    async with cluster.write.acquire() as conn:
        await conn.execute(insert)
        await conn.commit()


async def by_getconn(cluster: Cluster[Any], insert: str) -> None:
    conn = await cluster.write.getconn()
    await conn.execute(insert)
    await conn.commit()
    await cluster.write.putconn(conn)


async def by_execute(cluster: Cluster[Any], insert: str) -> None:
    await cluster.write.execute(insert)


async def by_fetchval(cluster: Cluster[Any], insert: str) -> None:
    assert await cluster.write.fetchval(f"{insert} RETURNING x") == 1


async def by_executemany(cluster: Cluster[Any], insert: str) -> None:
    await cluster.write.executemany(insert.replace("(1)", "(%s)"), [(1,)])


async def by_batch(cluster: Cluster[Any], insert: str) -> None:
    await cluster.write.batch(["SELECT 1", insert])


async def by_function(cluster: Cluster[Any], insert: str) -> None:
    await cluster.write.execute(f"DO $$ BEGIN {insert}; END $$")


RIDING: list[Write] = [by_connection, by_transaction, by_run_transaction]
"""Those whose COMMIT brings the token along."""
WRITES: list[Write] = [
    *RIDING,
    *(by_explicit_commit, by_autocommit, by_session, by_block_in_a_session, by_acquire),
    *(by_getconn, by_execute, by_fetchval, by_executemany, by_batch, by_function),
]
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "traced": {"leak_timeout": 60.0}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("write", WRITES)
async def test_what_was_written_in_a_context_is_read_in_it(
    pair: Pair, notes: str, write: Write, options: dict[str, Any]
) -> None:
    """However it was written; the standby has stopped, so that any other read would be stale."""
    insert, count = f"INSERT INTO {notes} VALUES (1)", f"SELECT count(*) FROM {notes}"
    async with opened(pair, token_wait=0.01, **options) as cluster:
        with pair.paused():
            for number in (1, 2):
                with cluster.own_writes() as own:
                    assert await cluster.read.fetchval(count) == 0
                    assert own.token is None
                    await write(cluster, insert)
                    assert own.is_settled == (SUPPORTED and write in RIDING)
                    assert await cluster.read.fetchval(count) == number
                    assert own.is_settled
                    async with cluster.read.connection() as conn:
                        assert await (await conn.execute(count)).fetchone() == (number,)
                assert await cluster.read.fetchval(count) == 0, "the standby is not paused"
                with cluster.own_writes(after=own.token):
                    assert await cluster.read.fetchval(count) == number
                    assert await cluster.read.fetchval(count, after="0/0") == 0


@needs_internals
@pytest.mark.parametrize("write", RIDING)
async def test_a_token_that_comes_with_the_commit_takes_no_statement_of_its_own(
    pair: Pair, notes: str, write: Write
) -> None:
    """It is at or after the end of the commit's record."""
    async with opened(pair) as cluster:
        asked = 0
        position = cluster.write.position

        async def counting(timeout: float | None = None) -> Token:
            nonlocal asked
            asked += 1
            return await position(timeout)

        cluster.write.position = counting  # type: ignore[method-assign]
        with cluster.own_writes() as own:
            await write(cluster, f"INSERT INTO {notes} VALUES (1)")
            assert own.token == await own.settle()
            assert asked == 0
            await by_execute(cluster, f"INSERT INTO {notes} VALUES (1)")
            await own.settle()
        assert asked == 1


async def test_a_failed_write_is_no_write(pair: Pair, notes: str) -> None:
    """The errors are those of any block; a transaction that was rolled back gives no token."""
    async with opened(pair) as cluster:
        with cluster.own_writes() as own:
            for block in (cluster.write.transaction, cluster.write.connection):

                async def work(block: Any = block) -> None:
                    async with block() as conn:
                        await conn.execute(f"INSERT INTO {notes} VALUES (1)")
                        raise ZeroDivisionError

                with pytest.raises(ZeroDivisionError):
                    await work()
            assert own.token is None
            with pytest.raises(psycopg.errors.UndefinedTable):
                await cluster.write.execute("INSERT INTO nowhere VALUES (1)")
            with pytest.raises(psycopg.errors.UndefinedTable):
                async with cluster.write.transaction() as conn:
                    await conn.execute("INSERT INTO nowhere VALUES (1)")
        assert await cluster.write.fetchval(f"SELECT count(*) FROM {notes}") == 0


@pytest.mark.parametrize("pipeline", [True, False])
async def test_reads_of_the_primary_are_no_writes(pair: Pair, pipeline: bool) -> None:
    """A plain read as a one-shot moves nothing on, wherever it runs."""
    async with opened(pair, pipeline=pipeline) as cluster:
        with cluster.own_writes() as own:
            assert await cluster.write.fetchval("SELECT 1") == 1
            assert own.is_settled
            assert await own.settle() is None


async def test_tasks_of_a_context_write_and_read_at_the_same_time(pair: Pair, notes: str) -> None:
    """What each task has written is there for it, whatever the others do meanwhile."""
    async with opened(pair, token_wait=0.01) as cluster:

        async def work(number: int, write: Write) -> None:
            await write(cluster, f"INSERT INTO {notes} VALUES ({number})")
            query = f"SELECT count(*) FROM {notes} WHERE x = {number}"
            assert await cluster.read.fetchval(query) == 1

        with pair.paused(), cluster.own_writes() as own:
            async with asyncio.TaskGroup() as group:
                for number in range(100, 160):
                    write = [by_connection, by_execute, by_transaction, by_acquire][number % 4]
                    group.create_task(work(number, write))
            assert own.is_settled


async def test_a_write_that_is_still_under_way_may_have_committed(pair: Pair, notes: str) -> None:
    """A block can commit in between, so each read asks while it lasts."""
    count = f"SELECT count(*) FROM {notes}"
    async with opened(pair, token_wait=0.01) as cluster:
        with pair.paused(), cluster.own_writes():
            async with cluster.write.connection() as conn:
                for number in range(1, 4):
                    await conn.execute(f"INSERT INTO {notes} VALUES (1)")
                    await conn.commit()
                    assert await cluster.read.fetchval(count) == number
            conn = await cluster.write.acquire()
            for number in range(4, 7):
                await conn.execute(f"INSERT INTO {notes} VALUES (1)")
                await conn.commit()
                assert await cluster.read.fetchval(count) == number
            await cluster.write.release(conn)


async def test_a_cancelled_block_leaves_the_context_usable(pair: Pair, notes: str) -> None:
    """Its writes, of which nothing is known, are asked for."""
    async with opened(pair) as cluster:
        with cluster.own_writes() as own:
            for kind in (cluster.write.connection, cluster.write.transaction):
                entered = asyncio.Event()

                async def work(kind: Any = kind, entered: asyncio.Event = entered) -> None:
                    async with kind() as conn:
                        await conn.execute(f"INSERT INTO {notes} VALUES (1)")
                        entered.set()
                        await asyncio.sleep(60)

                task = asyncio.create_task(work())
                await entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await in_time(own.settle())
            assert own.is_settled
            await by_connection(cluster, f"INSERT INTO {notes} VALUES (1)")
            assert await cluster.read.fetchval(f"SELECT count(*) FROM {notes}") == 1


async def test_a_session_of_reads_sees_later_writes(pair: Pair, notes: str) -> None:
    """Its own host is waited for first, then the primary serves the read."""
    count = f"SELECT count(*) FROM {notes}"
    async with opened(pair, token_wait=0.01) as cluster:
        with pair.paused(), cluster.own_writes():
            async with cluster.read.session():
                assert await cluster.read.fetchval(count) == 0
                await by_connection(cluster, f"INSERT INTO {notes} VALUES (1)")
                assert await cluster.read.fetchval(count) == 1


async def test_contexts_of_two_clusters_are_separate(pair: Pair, notes: str) -> None:
    """A write of the one is none of the other."""
    async with opened(pair) as one, opened(pair) as two:
        with one.own_writes() as own, two.own_writes() as other:
            await by_connection(one, f"INSERT INTO {notes} VALUES (1)")
            await own.settle()
            assert await other.settle() is None
