"""Under load, behind a standby that lags: no read with a token is stale, and many without are."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import Cluster
from tests._tools import few

from ._pair import Pair, opened, started_pair

TASKS = 16


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The servers of this module, with a row for each task."""
    with started_pair() as pair:
        pair.on_primary("CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL)")
        yield pair


@asynccontextmanager
async def lagging(pair: Pair, delay: str, **options: Any) -> AsyncIterator[Cluster[Any]]:
    """A cluster whose standby replays each commit some time after it."""
    pair.on_primary("TRUNCATE counters")
    pair.on_primary(f"INSERT INTO counters SELECT i, 0 FROM generate_series(1, {TASKS}) AS i")
    pair.on_standby(f"ALTER SYSTEM SET recovery_min_apply_delay = '{delay}'")
    pair.on_standby("SELECT pg_reload_conf()")
    pair.catch_up()
    async with opened(pair, max_size=8, **options) as cluster:
        yield cluster
    pair.on_standby("ALTER SYSTEM RESET recovery_min_apply_delay")
    pair.on_standby("SELECT pg_reload_conf()")


READ = "SELECT n, pg_is_in_recovery() FROM counters WHERE id = %s"
WRITE = "UPDATE counters SET n = n + 1 WHERE id = %s RETURNING n"


async def by_nothing(cluster: Cluster[Any], key: int) -> tuple[int, int, bool]:
    written = await cluster.write.fetchval(WRITE, [key])
    return written, *(await cluster.read.fetchone(READ, [key]) or ())


async def by_token(cluster: Cluster[Any], key: int) -> tuple[int, int, bool]:
    written = await cluster.write.fetchval(WRITE, [key])
    token = await cluster.write.token()
    return written, *(await cluster.read.fetchone(READ, [key], after=token) or ())


async def by_context(cluster: Cluster[Any], key: int) -> tuple[int, int, bool]:
    with cluster.own_writes():
        async with cluster.write.connection() as conn:
            (written,) = await (await conn.execute(WRITE, [key])).fetchone() or (0,)
        async with cluster.read.connection() as conn:
            row = await (await conn.execute(READ, [key])).fetchone() or (0, False)
    return written, *row


async def by_async_commit(cluster: Cluster[Any], key: int) -> tuple[int, int, bool]:
    with cluster.own_writes() as own:
        async with cluster.write.transaction(settings={"synchronous_commit": "off"}) as conn:
            (written,) = await (await conn.execute(WRITE, [key])).fetchone() or (0,)
        token = await own.settle()
    return written, *(await cluster.read.fetchone(READ, [key], after=token) or ())


async def played(cluster: Cluster[Any], rounds: int, way: Any) -> Counter[str]:
    """Write and read many times; count stale reads and those that a standby served."""
    seen: Counter[str] = Counter()

    async def work(key: int) -> None:
        for _ in range(rounds // TASKS):
            written, read, on_standby = await way(cluster, key)
            seen["rounds"] += 1
            seen["stale"] += read < written
            seen["standby"] += on_standby
            assert read <= written

    async with asyncio.TaskGroup() as group:
        for key in range(1, TASKS + 1):
            group.create_task(work(key))
    return seen


@pytest.mark.parametrize("delay", few(["10ms", "0", "200ms"]))
@pytest.mark.parametrize("way", [by_token, by_context, by_async_commit])
@pytest.mark.exhaustive
async def test_no_read_with_a_token_is_stale(pair: Pair, way: Any, delay: str) -> None:
    """However far the standby lags, and whoever serves the read in the end."""
    async with lagging(pair, delay) as cluster:
        seen = await played(cluster, 3200, way)
    assert seen["rounds"] == 3200
    assert seen["stale"] == 0
    if delay == "10ms" and way is not by_async_commit:
        assert seen["standby"] > 320, "the standby has served next to nothing"


@pytest.mark.exhaustive
async def test_reads_without_a_token_are_stale(pair: Pair) -> None:
    """Otherwise the test above could not fail."""
    async with lagging(pair, "10ms") as cluster:
        seen = await played(cluster, 3200, by_nothing)
    assert seen["stale"] > 1000
    assert seen["standby"] == 3200
