"""What the inspector's feed says: health, the last minute, this process, its places."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, Fleet, within
from asyncpool.inspector._feed import ALIVE, Feed
from asyncpool.inspector._minute import Minute, between
from asyncpool.inspector._places import shorter

from ._tools import Proxy, at_rest, eventually, in_time, overloaded


async def shown_by(feed: Feed) -> dict[str, Any]:
    """Return the first pool of a snapshot."""
    (shown, *_) = json.loads(await in_time(feed.snapshot()))["pools"]
    return dict(shown)


async def until(feed: Feed, fact: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Read snapshots until one has what is asked for."""

    async def read() -> dict[str, Any]:
        while not fact(shown := await shown_by(feed)):
            await feed.next()
        return shown

    return await in_time(read())


@pytest.mark.exhaustive
async def test_a_server_that_has_stopped_is_down_with_the_last_error(dsn: str) -> None:
    """And "ok" again when it is back; the error has no password."""
    secret = conninfo_to_dict(dsn).get("password") or "no password at all"
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        feed = Feed(pool, 0.02)
        shown = await until(feed, lambda shown: shown["health"]["status"] == "ok")
        assert shown["health"]["latency"] > 0
        port, proxy._port = proxy._port, 1  # where nothing listens
        proxy.cut()
        shown = await until(feed, lambda shown: shown["health"]["status"] == "down")
        shown = await until(feed, lambda shown: shown["health"]["last_error"])
        assert str(secret) not in json.dumps(shown)
        assert shown["minute"]["connects_failed"] > 0
        proxy._port = port
        await until(feed, lambda shown: shown["health"]["status"] == "ok")
        await pool.close()
        await until(feed, lambda shown: shown["health"]["status"] == "down")


@pytest.mark.exhaustive
async def test_a_server_that_no_longer_answers_is_down(dsn: str) -> None:
    """No packet says so: only the ping of the health check finds it."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        feed = Feed(pool, 0.02)
        await until(feed, lambda shown: shown["health"]["status"] == "ok")
        proxy.open_way.clear()
        await until(feed, lambda shown: shown["health"]["status"] == "down")
        proxy.open_way.set()
        await until(feed, lambda shown: shown["health"]["status"] == "ok")


async def test_requests_that_wait_make_a_pool_degraded(dsn: str) -> None:
    """The reason says how many wait."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        conn = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting)
        shown = await shown_by(Feed(pool))
        assert shown["health"]["status"] == "degraded"
        assert "1 request waits" in shown["health"]["reason"]
        await pool.release(conn)
        await pool.release(await waiting)


async def test_a_reader_does_not_open_a_pool(dsn: str) -> None:
    """A pool that opens on its first use is not open yet."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    shown = await shown_by(Feed(pool))
    assert shown["health"]["status"] == "not open"
    assert pool.stats().connects == 0


async def test_without_a_reader_no_connection_is_pinged(dsn: str) -> None:
    """The timer goes on for the timeline, and asks the server nothing."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        feed = Feed(pool, 0.01)
        await feed.snapshot()
        pings = (await at_rest(pool)).ping.count
        assert pings == 1
        for _ in range(5):
            await feed.next()
        assert pool.stats().ping.count == pings


async def test_all_readers_share_one_health_check(dsn: str) -> None:
    """One that is cancelled does not end it."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        feed = Feed(pool, 60.0)
        proxy.open_way.clear()
        readers = [asyncio.create_task(feed.snapshot()) for _ in range(5)]
        await eventually(lambda: pool.stats().cleaning)
        readers[0].cancel()
        proxy.open_way.set()
        texts = await in_time(asyncio.gather(*readers[1:]))
        assert len(set(texts)) == 1
        assert json.loads(texts[0])["pools"][0]["health"]["status"] == "ok"
        assert pool.stats().ping.count == 1
        assert readers[0].cancelled()


async def test_expensive_snapshots_are_made_less_often(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that they take a small share of the loop's time; between them each tick says "alive"."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        feed = Feed(pool, 0.005)
        shown, made = feed._shown, 0

        def slow(*args: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            time.sleep(0.02)  # as a pool of some hundred connections takes
            return shown(*args, **options)

        monkeypatch.setattr(feed, "_shown", slow)
        stream = feed.stream()
        began = time.monotonic()
        events: list[str | None] = []
        while made < 3:
            events.append(await asyncio.wait_for(stream.next(), 15))
        assert events[-1] is not None
        assert events[-1].startswith("data: {")
        assert events.count(ALIVE) == len(events) - 3 > 0
        assert time.monotonic() - began >= 2 * 0.02 / 0.05


async def test_a_null_pool_is_checked_rarely(dsn: str) -> None:
    """Each check opens a connection."""
    async with AsyncNullConnectionPool(dsn, max_size=1) as pool:
        feed = Feed(pool, 0.01)
        feed._health._interval = 0.0
        for _ in range(5):
            shown = await shown_by(feed)
        assert shown["health"]["status"] == "ok"
        assert pool.stats().connects == 1


async def test_the_snapshot_says_which_process_and_database_it_is_of(dsn: str) -> None:
    """The parameters are those that libpq uses, but for the password."""
    params = conninfo_to_dict(dsn)
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        text = await Feed(pool).snapshot()
        found = json.loads(text)
        assert found["process"]["pid"] == os.getpid()
        assert found["process"]["host"] == socket.gethostname()
        assert 0 < found["process"]["uptime"] < 1e6
        assert found["pools"][0]["database"]["dbname"] == params["dbname"]
        assert found["pools"][0]["database"]["user"] == params["user"]
        assert "password" not in text
    other = AsyncConnectionPool(lambda: dsn, open=False)
    assert (await shown_by(Feed(other)))["database"] is None


async def test_the_server_says_how_many_sessions_it_sees(dsn: str, backends: Any) -> None:
    """Those of the pool apart from others of the same role; it waits for no connection."""
    name = "inspected"
    backends.ask(f"CREATE ROLE {name} {backends.login}")
    try:
        other = make_conninfo(dsn, user=name)
        async with AsyncConnectionPool(other, min_size=2, max_size=2, name="shop") as pool:
            await pool.wait()
            async with await psycopg.AsyncConnection.connect(other):
                found = json.loads(await Feed(pool).server())["pools"]["shop"]
            assert (found["sessions"], found["own"], found["addresses"]) == (3, 2, 1)
            assert found["role"] == name
            async with pool.connection(), pool.connection():
                assert json.loads(await in_time(Feed(pool).server()))["pools"] == {"shop": None}
    finally:
        backends.ask(f"DROP ROLE {name}")


async def test_the_last_minute_does_not_count_what_came_before(dsn: str) -> None:
    """Its requests, failures, wait times and hold times are differences of two snapshots."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        await pool.execute("SELECT pg_sleep(0.1)")
        before = await at_rest(pool)
        minute = Minute()
        minute.add(100.0, before)
        assert minute.until(101.0, before)["requests"] == 0
        assert minute.until(101.0, before)["hold"]["p99"] is None
        for _ in range(3):
            async with pool.connection():
                pass
        now = await at_rest(pool)
        shown = minute.until(102.0, now)
        assert (shown["seconds"], shown["requests"]) == (2.0, 3)
        assert shown["hold"]["count"] == 3
        assert shown["hold"]["max"] < 0.1
        assert sum(number for *_, number in shown["hold"]["buckets"]) == 3


async def test_the_snapshot_has_the_refused_requests_of_the_last_minute(dsn: str) -> None:
    """Beside the expected wait and the age of the queue."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        async with overloaded(pool, refusals=2):
            pass
        feed = Feed(pool, interval=0.02)
        await feed.snapshot()
        async with overloaded(pool, refusals=3):
            await feed.next()
            (shown,) = json.loads(await feed.snapshot())["pools"]
        assert shown["minute"]["requests_refused"] == 3
        assert shown["stats"]["refused_deadline"] == 5
        assert shown["stats"]["expected_wait"] > 0
        assert shown["stats"]["standing"] > 0
        assert len(shown["overload"]) == 2


async def test_the_snapshot_has_the_priority_and_the_flow_of_waiters(dsn: str) -> None:
    """Those of the requests that have them, in the order in which they are served."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        async with pool.connection():
            waiting = [asyncio.create_task(pool.getconn())]
            await eventually(lambda: pool.stats().waiting)
            with within(priority=7, flow="acme"):
                waiting.append(asyncio.create_task(pool.getconn()))
            await eventually(lambda: pool.stats().waiting == 2)
            (shown,) = json.loads(await Feed(pool).snapshot())["pools"]
        assert [(each["priority"], each["flow"]) for each in shown["waiters"]] == [
            (7, "acme"),
            (0, None),
        ]
        for task in reversed(waiting):
            await pool.putconn(await task)


def test_a_minute_is_of_the_last_minute() -> None:
    """Snapshots older than a minute are dropped, and so are those of another life of the pool."""
    stats = AsyncConnectionPool(open=False).stats()
    minute = Minute()
    for second in range(300):
        minute.add(float(second), replace(stats, requests=second))
        assert len(minute._kept) <= 14
    shown = minute.until(299.0, replace(stats, requests=299))
    assert 60 <= shown["seconds"] <= 65
    assert shown["requests"] == shown["seconds"]
    minute.add(300.0, replace(stats, requests=2))
    assert minute.until(301.0, replace(stats, requests=5))["requests"] == 3


@pytest.mark.parametrize(
    ("durations", "p50", "most"),
    [
        ([0.001] * 100, 0.001, 0.001),
        ([0.05] * 9 + [1e-5], 0.05, 0.05),
        ([500.0, 0.001], 0.001, 500.0),
    ],
)
async def test_quantiles_are_those_of_the_difference(
    durations: list[float], p50: float, most: float
) -> None:
    """Exact to a bucket, a factor of 1.19."""
    pool = AsyncConnectionPool(open=False)
    before = pool.stats()
    for duration in durations:
        pool._core.runtime.counters.wait.add(duration)
    found = between(before.wait, pool.stats().wait)
    assert found["count"] == len(durations)
    assert found["p50"] == pytest.approx(p50, rel=0.2)
    assert found["max"] == pytest.approx(most, rel=0.2)
    json.dumps(found, allow_nan=False)


def test_places_begin_below_the_folders_that_python_imports_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else in a text is changed."""
    monkeypatch.setattr("sys.path", ["/srv", "/usr/lib/python3", "/usr/lib/python3/site-packages"])
    assert shorter("/srv/shop/orders.py:12 in refund") == "shop/orders.py:12 in refund"
    assert shorter("by GET /srv/x\nfrom /srv/a.py:1 in f") == "by GET /srv/x\nfrom a.py:1 in f"
    assert shorter("/usr/lib/python3/site-packages/x/y.py:1 in f") == "x/y.py:1 in f"
    assert shorter("/home/srv/orders.py:12 in refund") == "/home/srv/orders.py:12 in refund"


async def test_a_fleet_is_seen_with_its_members_and_share(dsn: str) -> None:
    """What the last look has shown is part of the snapshot, and of the text of `explain()`."""
    name = f"f{uuid4().hex[:8]}"
    fleets = [Fleet(name), Fleet(name)]
    async with (
        AsyncConnectionPool(dsn, min_size=2, budget=fleets[0]) as pool,
        AsyncConnectionPool(dsn, min_size=1, budget=fleets[1]),
    ):
        feed = Feed(pool, 0.05)
        shown = await until(feed, lambda shown: "members: 2, using 3 of" in shown["budget"])
        stats = fleets[0].stats()
        assert shown["budget"].startswith(f"fleet {name!r}: 2 of {stats.limit} connections")
        assert f"fair share {stats.share};" in shown["budget"]
        assert f"\nbudget: fleet {name!r}: 2 of" in str(pool.explain())
