"""The formulas, compared with tables and with a simulated queue."""

from __future__ import annotations

import asyncio
import heapq
import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from asyncpool import Advice
from asyncpool._core.pool import Core
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.sizing import advise, erlang_c, expect, size_for
from tests.fake import FakeConn
from tests.unit._load import Load
from tests.unit._tools import Driver, make_core, running, use, virtual_time


@pytest.mark.parametrize(
    ("servers", "load", "waits"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (5, 4.0, 0.5541), (10, 8.0, 0.4092)],
)
def test_erlang_c_matches_the_tables(servers: int, load: float, waits: float) -> None:
    """The first three values can be derived by hand."""
    assert erlang_c(servers, load) == pytest.approx(waits, abs=5e-5)


def test_erlang_c_is_the_sum_that_defines_it() -> None:
    """The result is also right if the terms of the sum do not fit into a float."""
    for servers, load in [(4, 0.1), (20, 15.0), (100, 90.0)]:
        last = load**servers / math.factorial(servers) * servers / (servers - load)
        others = sum(load**k / math.factorial(k) for k in range(servers))
        assert erlang_c(servers, load) == pytest.approx(last / (others + last))
    assert 0 < erlang_c(5000, 4990.0) < 1


def test_no_load_never_waits_and_overload_always_does() -> None:
    """Neither end divides by zero."""
    assert erlang_c(3, 0.0) == 0.0
    assert erlang_c(3, 3.0) == erlang_c(3, 4.0) == 1.0
    full = expect(3, 3.0, 0.1)
    assert (full.utilisation, full.mean_wait, full.p99_wait) == (1.0, math.inf, math.inf)
    idle = expect(3, 0.0, 0.0)
    assert (idle.utilisation, idle.waits, idle.mean_wait, idle.p99_wait) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (4, 3.2), (10, 8.5)])
def test_a_simulated_queue_waits_as_expected(servers: int, load: float) -> None:
    """The simulation has random arrivals, random use times and a FIFO queue."""
    rng, use = Random(servers), 0.02
    free_at = [0.0] * servers
    now, waits = 0.0, []
    for _ in range(300_000):
        now += rng.expovariate(load / use)
        begins = max(now, heapq.heappop(free_at))
        waits.append(begins - now)
        heapq.heappush(free_at, begins + rng.expovariate(1 / use))
    expected = expect(servers, load, use)
    assert sum(wait > 0 for wait in waits) / len(waits) == pytest.approx(expected.waits, rel=0.05)
    assert sum(waits) / len(waits) == pytest.approx(expected.mean_wait, rel=0.1)
    assert sorted(waits)[int(len(waits) * 0.99)] == pytest.approx(expected.p99_wait, rel=0.1)


def test_the_size_is_the_smallest_within_the_limits() -> None:
    """The size depends on the utilisation and, if given, on the limit of the p99 wait."""
    assert size_for(8.0, 0.01, 0.8) == 10
    assert size_for(0.01, 0.01, 0.8) == 1
    size = size_for(8.0, 0.01, 0.8, 0.001)
    assert expect(size, 8.0, 0.01).p99_wait <= 0.001 < expect(size - 1, 8.0, 0.01).p99_wait
    assert expect(size_for(50.0, 10.0, 0.99, 0.0), 50.0, 10.0).p99_wait == 0.0


def test_the_text_of_an_advice_has_its_numbers() -> None:
    """The text has the load, the sizes and the server's limit, with a warning if it is exceeded."""
    advice = Advice(
        window=60.0,
        requests=24_000,
        arrivals=400.0,
        mean_use=0.008,
        use_p50=0.006,
        use_p99=0.031,
        samples=1024,
        shared_load=0.25,
        load=3.45,
        max_size=4,
        expected=tuple(expect(size, 3.45, 0.008) for size in (3, 4, 5)),
        utilisation=0.8,
        recommended=5,
        workers=8,
        available=97,
        unknown="",
        refused=0,
        overload="wait",
    )
    text = str(advice)
    assert "OVERLOADED" not in text
    assert "refuse" not in text
    assert "24000 requests in 60.0 s, 400 a second" in text
    assert "8 ms on average (p50 6 ms, p99 31 ms of the last 1024)" in text
    assert "needed on average: 3.45, 0.25 of them by one-shots" in text
    assert "with 3: 115% in use: too few" in text
    assert "recommended max_size: 5" in text
    assert "leaves 97 connections to this role: 8 x 4 fit" in text
    assert not advice.exceeds
    short = replace(advice, available=31)
    assert short.exceeds
    assert "WARNING: 8 x 4 connections are more than the 31" in str(short)
    assert not replace(advice, available=32).exceeds
    unknown = replace(advice, available=None, unknown="no connection")
    assert not unknown.exceeds
    assert "not known: no connection" in str(unknown)
    assert "no advice yet" in str(replace(advice, load=0.0, expected=(), recommended=None))


async def advice_of(core: Core[FakeConn]) -> Advice:
    """Return the advice of a pool whose server answers nothing of use."""

    async def ask(*_: Any, **__: Any) -> None:
        """Answer nothing."""

    return await advise(core, ask, workers=1, utilisation=0.8, p99_wait=None)


@virtual_time
async def test_the_load_is_measured_from_the_opening_of_the_pool() -> None:
    """The time before that does not count."""
    await asyncio.sleep(100.0)
    core = make_core(Driver())
    advice = await advice_of(core)
    assert (advice.window, advice.arrivals, advice.load) == (0.0, 0.0, 0.0)
    async with running(Driver(), 1, 1) as core:
        await use(core, 2.0)
        await asyncio.sleep(8.0)
        advice = await advice_of(core)
        assert advice.window == pytest.approx(10.0, abs=0.001)
        assert advice.load == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("overload", ["wait", "refuse"])
@virtual_time
async def test_an_overload_is_told_with_what_helps(overload: str) -> None:
    """More connections if the server has room for them, refusing if it is the limit."""
    await asyncio.sleep(100.0)
    async with running(Driver(), 4, 4, overload=overload) as core:
        await Load(core).run(3.0, 5.0)
        advice = await advice_of(core)
    assert advice.overloaded
    assert advice.load == pytest.approx(12.0, rel=0.2)
    assert (advice.overload, advice.refused) == (overload, snapshot(core).requests_refused)
    assert advice.refused > 0.5 * advice.requests
    text = str(advice)
    assert "OVERLOADED: the load is more than 4 connections can serve" in text
    assert f"{advice.refused} of {advice.requests} requests were refused" in text
    assert f"more connections help: max_size={advice.recommended}" in text
    assert "if the server is the limit, more connections do not help" in text
    assert ('set overload="refuse"' in text) == (overload == "wait")
    full = str(replace(advice, available=10))
    assert f"1 x {advice.recommended} connections are more than the server allows" in full
    assert "more connections help:" not in full


@virtual_time
async def test_a_load_that_the_pool_can_serve_is_no_overload() -> None:
    """If a peak was refused, the averages of the whole time say nothing of it."""
    await asyncio.sleep(100.0)
    async with running(Driver(), 4, 4) as core:
        await Load(core).run(0.5, 5.0)
        advice = await advice_of(core)
        assert not advice.overloaded
        assert "refuse" not in str(advice)
        await Load(core).run(lambda at: 3.0 if at < 2.0 else 0.2, 60.0)
        advice = await advice_of(core)
    assert advice.overloaded
    assert "OVERLOADED" not in str(advice)
    assert "requests were refused\n  on average the load fits" in str(advice)


def test_a_pool_without_a_limit_is_not_overloaded_by_a_load() -> None:
    """Its `max_size` is 0."""
    core = make_core(Driver())
    advice = asyncio.run(advice_of(core))
    assert not replace(advice, max_size=0, load=50.0).overloaded
    assert replace(advice, max_size=50, load=50.0).overloaded
