"""Metrics over an app's life: pools made late, lifespans that run twice, several processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from asyncpool import AsyncConnectionPool
from asyncpool.metrics.prometheus import PoolCollector
from asyncpool.metrics.prometheus_multiprocess import MultiprocessMetrics

ROOT = Path(__file__).parents[2]
LABELS = ("state", "rule", "le")
WORKER = """
import asyncio, os, sys
from asyncpool import AsyncConnectionPool, TooManyRequests
from asyncpool.metrics.prometheus_multiprocess import MultiprocessMetrics

async def refuse(pool):
    conns = [await pool.acquire() for _ in range(4)]
    waiting = asyncio.create_task(pool.getconn())
    await asyncio.sleep(0)
    try:
        await pool.acquire()
    except TooManyRequests:
        waiting.cancel()
    await asyncio.wait({waiting})
    for conn in conns:
        await pool.release(conn)

async def serve(uses):
    async with AsyncConnectionPool(
        sys.argv[1], min_size=2, max_size=4, max_waiting=1, name="app"
    ) as pool:
        await pool.wait()
        await refuse(pool)
        patience = pool._core.ledger.queue.line.patience
        patience.limit, patience._trusted_at = 0.5, pool._core.runtime.time()
        with MultiprocessMetrics(lambda: pool, interval=0.01) as metrics:
            for _ in range(uses):
                async with pool.connection():
                    pass
            async with pool.connection():
                metrics.write()
                print("written", flush=True)
                await asyncio.to_thread(sys.stdin.readline)

async def main():
    for uses in (2, 3):  # a lifespan that runs twice
        await serve(uses)
    print("closed", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


OTHERS, LEASES = 6, 4
"""The requests of `refuse`, and those of them that were served."""


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Return each sample by its name, and its state, rule or bucket."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (each.name, "".join(each.labels.get(label, "") for label in LABELS)): each.value
        for family in families
        for each in family.samples
    }


async def test_a_callable_is_asked_at_each_scrape(dsn: str) -> None:
    """A collector is made before the app starts; it has no pool, one, several, and none again."""
    registry = CollectorRegistry()
    pools: list[AsyncConnectionPool] | AsyncConnectionPool | None = None
    PoolCollector(lambda: pools, registry=registry)
    assert samples(registry) == {}
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="a") as first,
        AsyncConnectionPool(dsn, min_size=1, name="b") as second,
    ):
        pools = first
        assert samples(registry)["asyncpool_min_connections", ""] == 1
        pools = [first, second]
        text = generate_latest(registry).decode()
        assert 'pool="a"' in text
        assert 'pool="b"' in text
    assert samples(registry) == {}


def test_what_is_neither_a_pool_nor_a_callable_is_refused() -> None:
    """The error comes at the call, not at a scrape."""
    with pytest.raises(TypeError, match="or a callable that returns one"):
        PoolCollector("pool", registry=None)  # type: ignore[arg-type]


async def test_two_open_pools_of_a_name_do_not_break_the_scrape(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Callables are asked late, so this is one WARNING; the app's other metrics are scraped."""
    registry = CollectorRegistry()
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="same") as first,
        AsyncConnectionPool(dsn, min_size=2, name="same") as second,
    ):
        PoolCollector(lambda: [first, second], registry=registry)
        for _ in range(2):
            assert samples(registry)["asyncpool_min_connections", ""] == 1
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert ["two open pools are named 'same'" in each.getMessage() for each in warnings] == [True]


async def test_a_lifespan_that_runs_twice_registers_twice(dsn: str) -> None:
    """The block unregisters at its end; the second pool of the name counts from 0."""
    registry = CollectorRegistry()
    for _ in range(2):
        async with AsyncConnectionPool(dsn, min_size=1, name="app") as pool:
            with PoolCollector(pool, registry=registry) as collector:
                assert await pool.fetchval("SELECT 1") == 1
                assert samples(registry)["asyncpool_requests_total", ""] == 1
            collector.unregister()  # once more does nothing
        assert samples(registry) == {}


async def test_a_second_collector_of_a_registry_says_what_to_do() -> None:
    """Two of a prefix would export the same names."""
    registry = CollectorRegistry()
    first = PoolCollector(registry=registry)
    with pytest.raises(ValueError, match=r"add\(\) the pool .* or unregister\(\) that one first"):
        PoolCollector(registry=registry)
    PoolCollector(registry=registry, prefix="other")
    first.unregister()
    PoolCollector(registry=registry)


def test_without_the_directory_of_the_multiprocess_mode_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing would read what is written."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    with pytest.raises(ValueError, match="use PoolCollector"):
        MultiprocessMetrics()


FLEET_MEMBER = """
import asyncio, sys
from asyncpool import AsyncConnectionPool, Fleet
from asyncpool.metrics.prometheus_multiprocess import MultiprocessMetrics

async def main():
    fleet = Fleet("shop")
    async with AsyncConnectionPool(sys.argv[1], min_size=2, budget=fleet) as pool:
        with MultiprocessMetrics(pool, fleet, interval=0.01):
            while fleet.stats().members < 2 or fleet.stats().fleet_size < 4:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            print("written", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
    print("closed", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.mark.exhaustive
def test_what_two_processes_see_of_their_fleet_is_not_added_up(dsn: str, tmp_path: Path) -> None:
    """Their own sizes are; nothing is left of them when they have left the fleet."""
    environment = os.environ | {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", FLEET_MEMBER, dsn],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for said in ("written", "closed"):
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline().strip() == said
            found = samples(registry)
            written = said == "written"
            assert found["asyncpool_fleet_size", ""] == (4 if written else 0)
            assert found["asyncpool_fleet_members", ""] == (2 if written else 0)
            assert found["asyncpool_fleet_connections", ""] == (4 if written else 0)
            assert (found["asyncpool_fleet_places", ""] > 0) is written
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("\n")
                worker.stdin.flush()
        assert [worker.wait(30) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_the_numbers_of_two_processes_add_up(dsn: str, tmp_path: Path) -> None:
    """Counters and histograms over both and over restarts; gauges of open pools only. Of times the
    largest counts."""
    environment = os.environ | {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, dsn],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]

    def step(wanted: str) -> None:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == f"{wanted}\n"

    def go_on() -> None:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()

    try:
        step("written")
        found = samples(registry)
        assert found["asyncpool_requests_total", ""] == 2 * (3 + OTHERS)
        assert found["asyncpool_requests_refused_total", "full"] == 2
        assert found["asyncpool_requests_refused_total", "standing"] == 0
        assert found["asyncpool_patience_seconds", ""] == 0.5
        assert found["asyncpool_use_seconds_count", ""] == 2 * (2 + LEASES)
        assert found["asyncpool_connections", "leased"] == 2
        assert found["asyncpool_max_connections", ""] == 8
        assert 0 < found["asyncpool_use_seconds_sum", ""] < 2 * (2 + LEASES) * 10
        assert {edge for name, edge in found if name == "asyncpool_use_seconds_bucket"} > {"+Inf"}
        go_on()
        step("written")
        assert samples(registry)["asyncpool_requests_total", ""] == 2 * (3 + 4 + 2 * OTHERS)
        assert samples(registry)["asyncpool_connections", "leased"] == 2
        go_on()
        step("closed")
        found = samples(registry)
        assert found["asyncpool_use_seconds_count", ""] == 2 * (3 + 4 + 2 * LEASES)
        assert found["asyncpool_requests_refused_total", "full"] == 2 * 2
        assert found["asyncpool_patience_seconds", ""] == 0
        assert found["asyncpool_connects_total", ""] == 2 * 4 * 2
        assert {value for (name, _), value in found.items() if name.endswith("nections")} == {0}
        go_on()
        assert [worker.wait(30) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
