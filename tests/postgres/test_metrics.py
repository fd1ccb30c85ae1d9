"""Metrics of working pools, read by the libraries of Prometheus and OpenTelemetry."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from asyncpool import AsyncConnectionPool, Fleet, PoolStats, PoolTimeout
from asyncpool.metrics.otel import BUCKETS, instrument
from asyncpool.metrics.prometheus import PoolCollector

from ._scrapes import scrape
from ._tools import eventually, in_time, overloaded

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"
PREFIX = "db.client.connection."
REFUSED = "asyncpool.refused_requests"


async def work(pool: AsyncConnectionPool[Any]) -> None:
    """Run ten concurrent leases, a one-shot, a timeout, a cancellation and a ping."""

    async def use() -> None:
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(0.002)")

    await asyncio.gather(*(use() for _ in range(10)))
    assert await pool.fetchval("SELECT 1") == 1
    async with pool.connection():
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.01)
        waiting = asyncio.create_task(pool.getconn())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
    await pool.check()


def scraped(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    """Return each sample by its name, pool, and state, rule or bucket."""
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> dict[tuple[str, str, str], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            others = (labels[name] for name in ("state", "rule", "le") if name in labels)
            key = (sample.name, labels["pool"], next(others, ""))
            assert key not in found
            found[key] = sample.value
    return found


async def test_a_scrape_has_the_pools_counts(dsn: str) -> None:
    """Names have base units; one registry has several pools."""
    registry = CollectorRegistry()
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="orders") as orders,
        AsyncConnectionPool(dsn, min_size=2, max_size=5, name="reports") as reports,
    ):
        await reports.wait()
        collector = PoolCollector(orders, registry=registry)
        collector.add(reports)
        await work(orders)
        found, stats = scraped(registry), orders.stats()
        assert found["asyncpool_connections", "orders", "idle"] == stats.idle == 1
        assert found["asyncpool_connections", "reports", "idle"] == 2
        assert found["asyncpool_max_connections", "reports", ""] == 5
        assert found["asyncpool_requests_total", "orders", ""] == stats.requests
        assert found["asyncpool_requests_timed_out_total", "orders", ""] == 1
        assert found["asyncpool_requests_cancelled_total", "orders", ""] == 1
        assert found["asyncpool_connects_total", "orders", ""] == 1
        for name, times in (
            ("wait", stats.wait),
            ("use", stats.use),
            ("connect", stats.connect),
            ("ping", stats.ping),
        ):
            assert found[f"asyncpool_{name}_seconds_count", "orders", ""] == times.count > 0
            assert found[f"asyncpool_{name}_seconds_sum", "orders", ""] == pytest.approx(times.sum)
            edges = {
                float(edge): upto
                for (sample, pool, edge), upto in found.items()
                if (sample, pool) == (f"asyncpool_{name}_seconds_bucket", "orders")
            }
            assert len(edges) == 22
            known = dict(times.buckets)
            for edge, upto in edges.items():
                nearest = min(known, key=lambda each: abs(each - edge) if each != edge else 0.0)
                assert known[nearest] == upto


async def test_a_scrape_shows_an_overload(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused requests by rule, and how the others wait; nothing of it without an overload."""
    registry, seen = CollectorRegistry(), dict[str, PoolStats]()
    async with AsyncConnectionPool(dsn, min_size=1, max_waiting=60, name="orders") as pool:
        PoolCollector(pool, registry=registry)
        gauges = ("service_rate", "expected_wait_seconds", "standing_seconds", "patience_seconds")
        before = scraped(registry)
        assert {before[f"asyncpool_{name}", "orders", ""] for name in gauges} == {0}
        refused = {
            rule: before["asyncpool_requests_refused_total", "orders", rule]
            for rule in ("full", "deadline", "patience", "standing")
        }
        assert set(refused.values()) == {0}
        async with overloaded(pool, refusals=3):
            with monkeypatch.context() as patch:
                read = pool.stats  # rates and waits change from one instant to the next
                patch.setattr(pool, "stats", lambda: seen.setdefault("read", read()))
                found = scraped(registry)
            assert found["asyncpool_requests_refused_total", "orders", "deadline"] == 3
            assert found["asyncpool_requests_refused_total", "orders", "standing"] == 0
            assert found["asyncpool_requests_failed_total", "orders", ""] == 3
            assert found["asyncpool_standing_seconds", "orders", ""] > 0
            assert found["asyncpool_patience_seconds", "orders", ""] == 0
            rate = found["asyncpool_service_rate", "orders", ""]
            wait = found["asyncpool_expected_wait_seconds", "orders", ""]
            assert (rate, wait) == (seen["read"].service_rate, seen["read"].expected_wait)
            assert rate > 0
            assert wait > 0


async def test_a_closed_or_collected_pool_is_not_scraped(dsn: str) -> None:
    """The collector keeps no pool alive."""
    registry = CollectorRegistry()
    pool = AsyncConnectionPool(dsn, min_size=1, name="short")
    unused = AsyncConnectionPool(dsn, open=False, name="unused")
    collector = PoolCollector(pool, unused, registry=registry)
    async with pool:
        await unused.open()
        assert {name for _, name, _ in scraped(registry)} == {"short", "unused"}
        collector.remove(pool)
        assert {name for _, name, _ in scraped(registry)} == {"unused"}
        collector.add(pool)
        await unused.close()
        assert {name for _, name, _ in scraped(registry)} == {"short"}
    assert scraped(registry) == {}
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None


def test_pools_of_the_same_name_are_refused() -> None:
    """Arguments that are no pool are refused too."""
    first, second = (AsyncConnectionPool(open=False, name="same") for _ in range(2))
    collector = PoolCollector(first, registry=None)
    with pytest.raises(ValueError, match="two pools are named 'same'"):
        collector.add(second)
    collector.add(first)
    with pytest.raises(TypeError, match="AsyncConnectionPool"):
        collector.add("dsn")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one or more pools"):
        instrument()


FLEET = {
    "members": "members",
    "share": "share",
    "limit": "limit",
    "size": "size",
    "connections": "fleet_size",
    "places": "places",
    "others": "others",
}
"""The numbers of a fleet that do not change by themselves, and where `stats()` has them."""


async def test_a_fleet_has_metrics_of_its_own(dsn: str) -> None:
    """Each number of `stats()` has the fleet's name; before the first look some are missing."""
    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    fleet = Fleet(f"f{uuid4().hex[:8]}")
    PoolCollector(fleet, registry=registry)
    instrumentation = instrument(fleet, meter_provider=MeterProvider([reader]))
    assert fleet_scraped(registry)["look_age_seconds"] is None
    async with AsyncConnectionPool(dsn, min_size=2, budget=fleet) as pool:
        await pool.wait()
        await eventually(lambda: fleet.stats().last_look is not None)
        await eventually(lambda: fleet.stats().members == 1)
        found, stats = fleet_scraped(registry), fleet.stats()
        observed = {name: point.value for name, point in fleet_observed(reader, fleet.name)}
        for key, attribute in FLEET.items():
            assert found[key] == getattr(stats, attribute), key
            assert observed[key] == getattr(stats, attribute), key
        assert stats.size == 2
        assert stats.places > 0
        assert 0 <= (found["look_age_seconds"] or 0) < 10
        assert 0 <= observed["look_age"] < 10
    instrumentation.uninstrument()
    assert list(fleet_observed(reader, fleet.name)) == []


def fleet_scraped(registry: CollectorRegistry) -> dict[str, float | None]:
    """Return each number of the one fleet of a registry; None: it has no sample."""
    prefix = "asyncpool_fleet_"
    return {
        family.name.removeprefix(prefix): next((each.value for each in family.samples), None)
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        if family.name.startswith(prefix)
    }


def fleet_observed(reader: InMemoryMetricReader, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each number that a fleet has in a collection."""
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    if (point.attributes or {}).get("asyncpool.fleet.name") == name:
                        yield metric.name.removeprefix("asyncpool.fleet."), point


def test_fleets_of_the_same_name_are_refused() -> None:
    """A pool and a fleet may have the same name."""
    fleet, other = Fleet("shop"), Fleet("shop")
    pool = AsyncConnectionPool(open=False, name="shop")
    collector = PoolCollector(fleet, pool, lambda: fleet, registry=None)
    with pytest.raises(ValueError, match="two fleets are named 'shop'"):
        collector.add(other)
    collector.remove(fleet)
    collector.add(other)


async def test_another_thread_scrapes_a_pool_at_work(dsn: str) -> None:
    """The snapshot is made on the pool's loop; no count is lost."""
    registry = CollectorRegistry()
    async with AsyncConnectionPool(dsn, min_size=2, name="busy") as pool:
        PoolCollector(pool, registry=registry)
        server, thread = start_http_server(0, "127.0.0.1", registry=registry)
        address = f"http://127.0.0.1:{server.server_port}/metrics"
        stop = asyncio.Event()

        async def borrow() -> None:
            while not stop.is_set():
                for _ in range(50):
                    async with pool.connection():
                        pass
                await asyncio.sleep(0.001)

        def read() -> str:
            with urlopen(address) as answer:
                return str(answer.read().decode())

        try:
            tasks = [asyncio.create_task(borrow()) for _ in range(3)]
            before = 0.0
            for _ in range(20):
                found = parsed(await in_time(asyncio.to_thread(read)))
                now = found["asyncpool_use_seconds_count", "busy", ""]
                assert now >= before
                before = now
            stop.set()
            await asyncio.gather(*tasks)
            found = parsed(await in_time(asyncio.to_thread(read)))
        finally:
            server.shutdown()
            server.server_close()
            await asyncio.to_thread(thread.join)
        stats = pool.stats()
        assert found["asyncpool_use_seconds_count", "busy", ""] == stats.use.count
        assert stats.use.count == stats.requests


async def test_a_thread_does_not_wait_for_a_loop_that_is_busy(dsn: str) -> None:
    """The thread gets the numbers that are available without the loop."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(pool.stats()))
        thread.start()
        thread.join()  # this blocks the loop
        assert found[0].requests == 1
        assert found[0].size == 1


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    yield reader
    reader.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[str, dict[tuple[str, str], Any]]:
    """Return each point by its metric's name, without the prefix, its pool, and state or rule."""
    found: dict[str, dict[tuple[str, str], Any]] = defaultdict(dict)
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    pool = str((point.attributes or {})[f"{PREFIX}pool.name"])
                    state = (point.attributes or {}).get(f"{PREFIX}state", "")
                    key = str((point.attributes or {}).get("asyncpool.rule", state))
                    found[metric.name.removeprefix(PREFIX)][pool, key] = point
    return found


UNITS = {
    "count": "{connection}",
    "idle.max": "{connection}",
    "idle.min": "{connection}",
    "max": "{connection}",
    "pending_requests": "{request}",
    "timeouts": "{timeout}",
    "create_time": "s",
    "wait_time": "s",
    "use_time": "s",
}
OWN_UNITS = {
    "asyncpool.refused_requests": "{request}",
    "asyncpool.service_rate": "{request}/s",
    "asyncpool.expected_wait": "s",
    "asyncpool.standing": "s",
}
"""Those of the metrics that the conventions do not have, and that every pool has."""


async def test_the_semantic_conventions_are_kept(dsn: str, reader: InMemoryMetricReader) -> None:
    """All nine metrics have their attributes and buckets, and nothing is counted twice."""
    provider = MeterProvider([reader])
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="orders") as orders,
        AsyncConnectionPool(dsn, min_size=0, max_size=7, name="reports") as reports,
    ):
        made = instrument(orders, meter_provider=provider)
        instrument(reports, meter_provider=provider)
        for _ in range(2):
            await work(orders)
            found, stats = collected(reader), orders.stats()
            assert found.keys() == {*UNITS, *OWN_UNITS}
            assert found["count"]["orders", "idle"].value == 1
            assert found["count"]["orders", "used"].value == 0
            assert found["max"]["reports", ""].value == 7
            assert found["idle.max"]["reports", ""].value == 7
            assert found["idle.min"]["orders", ""].value == 1
            assert found["pending_requests"]["orders", ""].value == 0
            assert found["timeouts"]["orders", ""].value == stats.requests_timed_out > 0
            for name, times, count in (
                ("create_time", stats.connect, stats.connects),
                ("use_time", stats.use, stats.use.count),
                ("wait_time", stats.wait, stats.requests),
            ):
                point = found[name]["orders", ""]
                assert point.count == count > 0
                assert point.sum == pytest.approx(times.sum)
                assert tuple(point.explicit_bounds) == BUCKETS
        async with orders.connection():
            await asyncio.sleep(0.06)  # a snapshot is too old for the next collection
            assert collected(reader)["count"]["orders", "used"].value == 1
        made.uninstrument()
        made.uninstrument()
        assert ("orders", "") not in collected(reader)["max"]
    provider.shutdown()


async def test_units_are_those_of_the_conventions(dsn: str, reader: InMemoryMetricReader) -> None:
    """Each metric has its unit."""
    provider = MeterProvider([reader])
    async with AsyncConnectionPool(dsn, min_size=1, name="one") as pool:
        instrument(pool, meter_provider=provider)
        await work(pool)
        data = reader.get_metrics_data()
        assert data is not None
        units = {
            metric.name.removeprefix(PREFIX): metric.unit
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        assert units == UNITS | OWN_UNITS
    provider.shutdown()


async def test_opentelemetry_gets_the_numbers_of_an_overload(
    dsn: str, reader: InMemoryMetricReader
) -> None:
    """Refused requests by rule, and how the others wait; a patience only once it is learnt."""
    provider = MeterProvider([reader])
    async with AsyncConnectionPool(dsn, min_size=1, name="orders") as pool:
        instrument(pool, meter_provider=provider)
        async with overloaded(pool, refusals=3):
            await asyncio.sleep(0.06)  # a snapshot is too old for the next collection
            found = collected(reader)
            refused = {rule: point.value for (_, rule), point in found[REFUSED].items()}
            assert refused == {"full": 0, "deadline": 3, "patience": 0, "standing": 0}
            for name in ("service_rate", "expected_wait", "standing"):
                assert found[f"asyncpool.{name}"]["orders", ""].value > 0
            assert "asyncpool.patience" not in found
            patience = pool._core.ledger.queue.line.patience
            patience.limit, patience._trusted_at = 50.0, pool._core.runtime.time()
            await asyncio.sleep(0.06)
            assert collected(reader)["asyncpool.patience"]["orders", ""].value == 50.0
    provider.shutdown()


async def test_a_pool_that_was_closed_is_recorded_to_its_end(
    dsn: str, reader: InMemoryMetricReader
) -> None:
    """The last uses are recorded; the sizes are no longer reported."""
    provider = MeterProvider([reader])
    async with AsyncConnectionPool(dsn, min_size=1, name="short") as pool:
        instrument(pool, meter_provider=provider)
        async with pool.connection():
            pass
    found = collected(reader)
    assert found["use_time"]["short", ""].count == 1
    assert "max" not in found
    assert collected(reader)["use_time"]["short", ""].count == 1
    provider.shutdown()


async def test_a_long_wait_is_an_event_of_the_span_that_waited(dsn: str) -> None:
    """The event has the seconds; a failed wait and a one-shot's wait have one too."""
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = tracers.get_tracer("test")
    async with AsyncConnectionPool(dsn, min_size=1, name="narrow") as pool:
        made = instrument(
            pool, meter_provider=MeterProvider([InMemoryMetricReader()]), slow_wait=0.02
        )

        async def wait(name: str, timeout: float) -> None:
            with tracer.start_as_current_span(name):
                try:
                    if name == "one-shot":
                        await pool.fetchval("SELECT 1", timeout=timeout)
                    else:
                        await pool.release(await pool.acquire(timeout=timeout))
                except PoolTimeout:
                    pass

        async with pool.connection():
            tasks = [
                asyncio.create_task(wait(name, timeout))
                for name, timeout in (
                    ("short", 0.001),
                    ("in vain", 0.03),
                    ("served", 10.0),
                    ("one-shot", 10.0),
                )
            ]
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
        await wait("at once", 1.0)
        events = {span.name: span.events for span in exporter.get_finished_spans()}
        assert {name for name, found in events.items() if found} == {
            "in vain",
            "served",
            "one-shot",
        }
        (event,) = events["served"]
        assert event.name == "db.client.connection.wait"
        assert event.attributes is not None
        assert event.attributes[f"{PREFIX}pool.name"] == "narrow"
        assert event.attributes[f"{PREFIX}wait_time"] == pytest.approx(0.05, abs=0.049)
        made.uninstrument()
        assert pool._core.slow_wait == float("inf")


async def test_a_failing_callback_of_slow_waits_is_logged(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The request succeeds; bad arguments are refused."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        waits: list[float] = []

        def callback(waited: float) -> None:
            waits.append(waited)
            raise ZeroDivisionError

        await pool.wait()
        pool.on_slow_wait(0, callback)
        async with pool.connection():
            waiting = asyncio.create_task(pool.getconn())
            await eventually(lambda: pool.stats().waiting)
        await pool.putconn(await waiting)
        assert len(waits) == 1
        assert waits[0] > 0
        assert "on_slow_wait callback failed" in caplog.text
        caplog.clear()
        pool.on_slow_wait(0, None)
        with pytest.raises(ValueError, match="threshold"):
            pool.on_slow_wait(-1, callback)
        with pytest.raises(TypeError, match="callback"):
            pool.on_slow_wait(1, "call me")  # type: ignore[arg-type]


async def test_the_dashboards_queries_use_existing_metrics(dsn: str) -> None:
    """Each name and label in the queries exists in a scrape."""
    text = await scrape(dsn)
    names, labels = set(), {"pool"}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.add(sample.name)
            labels |= sample.labels.keys()
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    queries += [
        each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"
    ]
    asked: set[str] = set()
    for query in queries:
        found = set(re.findall(r"\basyncpool_\w+", query))
        assert found, query
        asked |= found
        for group in re.findall(r"\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", group)) <= labels, query
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert {each.strip() for each in group.split(",")} <= labels, query
    assert asked <= names
    assert len(asked) > 12
