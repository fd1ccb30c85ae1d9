"""The rows that run queries, one function each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import psycopg

from benchmarks import _pgbench
from benchmarks._plan import Plan
from benchmarks._pools import Copier, NullPools, OneShots, Subject
from benchmarks._proxy import far_away
from benchmarks._rounds import Bench, Turn, timed
from benchmarks._sql import LINE, ONE_SHOTS, Counters, Load

Work = Callable[[], Awaitable[Any]]


async def select(bench: Bench) -> None:
    """Measure a query's round trip, with more tasks than connections."""
    plan = bench.plan
    for mode in ("autocommit", "transaction"):
        async with bench.opened(autocommit=mode == "autocommit") as subjects:
            key = f"select-{mode}"
            turns: dict[str, Turn] = {
                name: partial(_loaded, subject.select, plan.tasks, plan.queries, key)
                for name, subject in subjects.items()
            }
            await _warm_up(turns)
            if mode == "autocommit":
                turns |= _pgbench.turns(bench, key)
            await bench.rounds(f"SELECT 1, {mode}", plan.rounds, turns)


async def by_key(bench: Bench) -> None:
    """Measure a read by key, by itself and in a transaction, with more tasks than connections."""
    for mode in ("autocommit", "transaction"):
        async with bench.opened(autocommit=mode == "autocommit") as subjects:
            works = {name: subject.by_key for name, subject in subjects.items()}
            await _loaded_rounds(bench, f"key-{mode}", works, bench.plan.rounds)


async def one_shots(bench: Bench) -> None:
    """Measure single statements by each pool's shortest API, nearby and over a slow network."""
    plan = bench.plan
    async with bench.opened(autocommit=True) as subjects:
        for what in ONE_SHOTS:
            turns = _single_turns(plan, subjects, what, f"oneshot-{what}")
            await _warm_up(turns)
            if what == "constant":
                turns |= _pgbench.turns(bench, "oneshot-constant", threads=1)
            await bench.rounds(
                f"one-shot, {what}", plan.some(1 if what == "constant" else 2), turns
            )
        counters = Counters(f"asyncpool_benchmark_{os.getpid()}")
        async with _table(bench, counters):
            turns = {
                name: partial(
                    _loaded,
                    partial(_write, each, counters),
                    plan.tasks,
                    plan.queries,
                    "oneshot-write",
                )
                for name, each in subjects.items()
                if isinstance(each, OneShots)
            }
            await _warm_up(turns)
            await bench.rounds("one-shot, write", plan.some(2), turns)
    with far_away(plan.dsn, lag=plan.lag) as far:
        async with bench.opened(autocommit=True, dsn=far) as subjects:
            turns = _single_turns(plan, subjects, "constant", "oneshot-far")
            await _warm_up(turns)
            await bench.rounds("one-shot, far", plan.some(2), turns)


def _single_turns(plan: Plan, subjects: dict[str, Subject], what: str, key: str) -> dict[str, Turn]:
    query, params = ONE_SHOTS[what]
    return {
        name: partial(_loaded, partial(each.one_shot, query, params), plan.tasks, plan.queries, key)
        for name, each in subjects.items()
        if isinstance(each, OneShots)
    }


async def _write(subject: OneShots, counters: Counters) -> None:
    await subject.write_once(counters.query, [counters.next_key()])


async def transaction(bench: Bench) -> None:
    """Measure a transaction of three statements, which takes five round trips."""
    async with bench.opened() as subjects:
        works = {name: subject.transaction for name, subject in subjects.items()}
        await _loaded_rounds(bench, "transaction", works, bench.plan.some(2))


async def twenty(bench: Bench) -> None:
    """Measure many statements on one borrowed connection, in autocommit."""
    async with bench.opened(autocommit=True) as subjects:
        works = {name: subject.twenty for name, subject in subjects.items()}
        await _loaded_rounds(bench, "twenty", works, bench.plan.some(2), bench.plan.blocks)


async def fetch(bench: Bench) -> None:
    """Measure results that take many reads."""
    async with bench.opened(autocommit=True) as subjects:
        turns: dict[str, Turn] = {
            name: partial(_loaded, subject.fetch, bench.plan.fetches, 1, "fetch")
            for name, subject in subjects.items()
        }
        await _warm_up(turns)
        await bench.rounds("rows", bench.plan.some(2), turns)


async def copy(bench: Bench) -> None:
    """Measure COPY over one connection, in each direction."""
    load = Load(f"asyncpool_benchmark_{os.getpid()}", round(bench.plan.copied * 1e6 / LINE))
    async with AsyncExitStack() as held:
        watcher = await held.enter_async_context(_table(bench, load))
        subjects = await held.enter_async_context(bench.opened(autocommit=True, size=1))
        out: dict[str, Turn] = {}
        into: dict[str, Turn] = {}
        for name, subject in subjects.items():
            if isinstance(subject, Copier):
                conn = await held.enter_async_context(subject.borrow())
                out[name] = partial(_copy_out, subject, conn, load)
                into[name] = partial(_copy_in, subject, conn, load, watcher)
        await bench.rounds("COPY out", bench.plan.some(5), out)
        await bench.rounds("COPY in", bench.plan.some(5), into)


async def latency(bench: Bench) -> None:
    """Measure the round trip of a single task."""
    async with bench.opened(autocommit=True, size=1) as subjects, AsyncExitStack() as held:
        turns: dict[str, Turn] = {}
        for name, subject in subjects.items():
            conn = await held.enter_async_context(subject.borrow())
            turns[name] = partial(_latency, subject, conn, bench.plan.asked)
        await _warm_up(turns)
        await bench.rounds("latency", bench.plan.rounds, turns)


async def null_pool(bench: Bench) -> None:
    """Measure a pool that opens a connection for each request."""
    async with bench.opened(autocommit=True, size=1) as subjects, AsyncExitStack() as held:
        turns: dict[str, Turn] = {}
        for name, subject in subjects.items():
            if isinstance(subject, NullPools):
                pool = await held.enter_async_context(subject.null_pool())
                turns[name] = partial(
                    _loaded, partial(_connect, pool, subject), 1, bench.plan.connects, "null"
                )
        await _warm_up(turns)
        await bench.rounds("null pool", bench.plan.rounds, turns)


async def _connect(pool: Any, subject: Subject) -> None:
    async with pool.connection() as conn:
        await subject.ask(conn)


async def _warm_up(turns: dict[str, Turn]) -> None:
    """Run each turn once, so that pools prepare their statements on each connection."""
    for turn in turns.values():
        await turn()


async def _loaded(work: Work, tasks: int, times: int, key: str) -> dict[str, float]:
    async def repeat() -> None:
        for _ in range(times):
            await work()

    with timed() as watch:
        await asyncio.gather(*(repeat() for _ in range(tasks)))
    requests = tasks * times
    return {key: watch.spent / requests * 1e6, f"{key}-cpu": watch.cpu / requests * 1e6}


async def _loaded_rounds(
    bench: Bench, key: str, works: Mapping[str, Work], count: int, times: int | None = None
) -> None:
    """Run each work in rounds, in many tasks, each of which repeats it; None: plan's queries."""
    plan = bench.plan
    turns: dict[str, Turn] = {
        name: partial(_loaded, work, plan.tasks, times or plan.queries, key)
        for name, work in works.items()
    }
    await _warm_up(turns)
    await bench.rounds(key, count, turns)


async def _latency(subject: Subject, conn: Any, times: int) -> dict[str, float]:
    with timed() as watch:
        for _ in range(times):
            await subject.ask(conn)
    return {"latency": watch.spent / times * 1e6}


@asynccontextmanager
async def _table(bench: Bench, content: Load | Counters) -> AsyncIterator[psycopg.AsyncConnection]:
    """Create a table for the block; yield a connection to inspect it."""
    async with await psycopg.AsyncConnection.connect(bench.plan.dsn, autocommit=True) as watcher:
        await watcher.execute(content.definition())
        try:
            yield watcher
        finally:
            await watcher.execute(f"DROP TABLE {content.table}")


async def _copy_out(subject: Copier, conn: Any, load: Load) -> dict[str, float]:
    with timed() as watch:
        size = await subject.copy_out(conn, load)
    assert size == load.lines * LINE, f"bug: COPY returned {size} bytes"
    return {"copy-out": watch.spent * 1e3}


async def _copy_in(
    subject: Copier, conn: Any, load: Load, watcher: psycopg.AsyncConnection
) -> dict[str, float]:
    with timed() as watch:
        await subject.copy_in(conn, load)
    cur = await watcher.execute(f"SELECT count(*) FROM {load.table}")
    row = await cur.fetchone()
    assert row == (load.lines,), f"bug: the table has {row} lines"
    await watcher.execute(f"TRUNCATE {load.table}")
    return {"copy-in": watch.spent * 1e3}
