"""The rows that measure the pools themselves, one function each."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import psycopg

from benchmarks import _queries
from benchmarks._plan import Plan
from benchmarks._pools import OURS, Borrow, Maker, Setup, Subject
from benchmarks._proxy import far_away
from benchmarks._rounds import Bench, Turn, timed
from benchmarks._scale import scale
from benchmarks._server_load import free_connections, wait_until_closed
from benchmarks._yardsticks import Shelf
from benchmarks.peers.ours import Ours

Spin = Callable[[int], Awaitable[None]]


async def cycle(bench: Bench) -> None:
    """Measure acquire and release without contention, and the lower bounds of `_yardsticks`."""
    async with bench.opened() as subjects:
        spins: dict[str, Spin] = {
            name: partial(_spin, subject.borrow) for name, subject in subjects.items()
        }
        if isinstance(ours := subjects.get(OURS), Ours):
            spins[f"{OURS} acquire/release"] = partial(_spin_pair, ours)
        shelf = Shelf(bench.plan.size)
        spins["bare deque, class"] = partial(_spin, shelf.bare)
        spins["bare deque, @asynccontextmanager"] = partial(_spin, shelf.generated)
        turns: dict[str, Turn] = {
            name: partial(_cycles, spin, await _fitting(spin, bench.plan.slice))
            for name, spin in spins.items()
        }
        await bench.rounds("uncontended cycle", bench.plan.rounds, turns)


async def handover(bench: Bench) -> None:
    """Measure how fast connections are handed over in a queue of waiting tasks."""
    async with bench.opened() as subjects:
        turns: dict[str, Turn] = {}
        for name, subject in subjects.items():
            await _queue(subject.borrow, bench.plan.size, bench.plan.few)
            turns[name] = partial(_queues, subject, bench.plan)
        await bench.rounds("hand-over", bench.plan.some(2), turns)


async def opening(bench: Bench) -> None:
    """Measure how long a pool takes to open all connections, to a near and to a distant server."""
    plan = bench.plan
    async with await psycopg.AsyncConnection.connect(plan.dsn, autocommit=True) as watcher:
        free = await free_connections(watcher)
        if free < plan.to_open:
            bench.notes.append(f"opening is left out: the server has only {free} free connections")
            return
        with far_away(plan.dsn, delay=plan.delay) as far:
            for where, dsn, count in (
                ("near", plan.dsn, plan.some(2)),
                ("far", far, plan.some(4)),
            ):
                setup = Setup(dsn, plan.to_open, plan.timeout)
                turns: dict[str, Turn] = {
                    name: partial(_open, make, setup, watcher, f"opening-{where}")
                    for name, make in bench.makers.items()
                }
                await bench.rounds(f"opening {plan.to_open}, {where}", count, turns)


async def memory(bench: Bench) -> None:
    """Measure the memory of a waiter."""
    bare = await _bare_waiters(bench.plan.asleep)
    async with bench.opened() as subjects:
        turns: dict[str, Turn] = {
            name: partial(_waiters, subject, bench.plan, bare) for name, subject in subjects.items()
        }
        await bench.rounds("memory of waiters", 1, turns)


RUN = {
    "cycle": cycle,
    "handover": handover,
    "select": _queries.select,
    "key": _queries.by_key,
    "oneshot": _queries.one_shots,
    "transaction": _queries.transaction,
    "twenty": _queries.twenty,
    "fetch": _queries.fetch,
    "copy": _queries.copy,
    "latency": _queries.latency,
    "null": _queries.null_pool,
    "opening": opening,
    "memory": memory,
    "scale": scale,
}


async def _spin(borrow: Borrow, times: int) -> None:
    for _ in range(times):
        async with borrow():
            pass


async def _spin_pair(ours: Ours, times: int) -> None:
    acquire, release = ours.pool.acquire, ours.pool.release
    for _ in range(times):
        await release(await acquire())


async def _fitting(spin: Spin, seconds: float) -> int:
    """Find how many cycles fit into this many seconds; this also warms up the pool."""
    times = 1
    while True:
        with timed() as watch:
            await spin(times)
        if watch.spent > seconds / 10:
            return max(1, round(times * seconds / watch.spent))
        times *= 2


async def _cycles(spin: Spin, times: int) -> dict[str, float]:
    with timed() as watch:
        await spin(times)
    return {"cycle": watch.spent / times * 1e6}


async def _queues(subject: Subject, plan: Plan) -> dict[str, float]:
    few = 0.0
    for _ in range(plan.few_times):
        few += await _queue(subject.borrow, plan.size, plan.few) / plan.few_times
    many = await _queue(subject.borrow, plan.size, plan.many)
    return {"handover-few": few, "handover-many": many, "handover-growth": many / few}


async def _queue(borrow: Borrow, size: int, waiters: int) -> float:
    """Measure the microseconds from one waiter to the next."""
    left, done = waiters, asyncio.get_running_loop().create_future()

    async def wait() -> None:
        nonlocal left
        try:
            async with borrow():
                pass
        finally:
            left -= 1
            if not left:
                done.set_result(None)

    async with AsyncExitStack() as held:
        for _ in range(size):
            await held.enter_async_context(borrow())
        tasks = [asyncio.create_task(wait()) for _ in range(waiters)]
        await _all_waiting()
        assert left == waiters, "bug: a task was served while everything was held"
        with timed() as watch:
            await held.aclose()
            await done
    await asyncio.gather(*tasks)
    return watch.spent / waiters * 1e6


async def _all_waiting() -> None:
    """Wait until all new tasks have reached the point where they wait."""
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


async def _open(
    make: Maker, setup: Setup, watcher: psycopg.AsyncConnection, key: str
) -> dict[str, float]:
    ready, over, held = asyncio.Event(), asyncio.Event(), 0

    async def hold() -> None:
        nonlocal held
        async with subject.borrow():
            held += 1
            if held == setup.size:
                ready.set()
            await over.wait()

    subject = make(setup)
    try:
        with timed() as watch:
            await subject.open()
            tasks = [asyncio.create_task(hold()) for _ in range(setup.size)]
            await ready.wait()
        over.set()
        await asyncio.gather(*tasks)
    finally:
        await subject.close()
        await wait_until_closed(watcher)
    return {key: watch.spent * 1e3}


async def _bare_waiters(count: int) -> float:
    """Measure the bytes of a task that waits on a future of its own."""

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    gc.collect()
    tracemalloc.start()
    try:
        tasks = [asyncio.create_task(wait()) for _ in range(count)]
        await _all_waiting()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return taken / count


async def _waiters(subject: Subject, plan: Plan, bare: float) -> dict[str, float]:
    async def wait() -> None:
        async with subject.borrow():
            pass

    async with AsyncExitStack() as held:
        for _ in range(plan.size):
            await held.enter_async_context(subject.borrow())
        gc.collect()
        tracemalloc.start()
        try:
            tasks = [asyncio.create_task(wait()) for _ in range(plan.asleep)]
            await _all_waiting()
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    await asyncio.gather(*tasks)
    return {"memory": taken / plan.asleep - bare}
