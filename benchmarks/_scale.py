"""The row `scale`: a pool of a thousand connections, and a thousand pools of one connection."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg

from asyncpool import PoolManager
from benchmarks._plan import Plan
from benchmarks._pools import OURS, Borrow, Maker, Setup
from benchmarks._rounds import Bench, Turn, timed
from benchmarks._server_load import free_connections, wait_until_closed

AT_ONCE = 50
"""Pools that are opened at the same time."""


async def scale(bench: Bench) -> None:
    """Measure time and memory of many connections in one pool, and of many pools."""
    plan = bench.plan
    async with await psycopg.AsyncConnection.connect(plan.dsn, autocommit=True) as watcher:
        free = await free_connections(watcher)
        if free < plan.scale:
            bench.notes.append(f"scale is left out: the server has only {free} free connections")
            return
        large: dict[str, Turn] = {
            name: partial(_large_pool, make, plan, watcher) for name, make in bench.makers.items()
        }
        await bench.rounds(f"{plan.scale} connections", plan.some(5), large)
        many: dict[str, Turn] = {
            name: partial(_many_pools, _manager if name == OURS else partial(_pools, make), plan)
            for name, make in bench.makers.items()
        }
        for name, turn in many.items():
            many[name] = partial(_then_wait, turn, watcher)
        await bench.rounds(f"{plan.scale} pools", plan.some(5), many)


async def _large_pool(
    make: Maker, plan: Plan, watcher: psycopg.AsyncConnection
) -> dict[str, float]:
    subject, before = make(Setup(plan.dsn, plan.scale, plan.timeout)), resident_memory()
    try:
        with timed() as opening:
            await subject.open()
            await _hold_all(subject.borrow, plan.scale)
        taken = _taken("scale-connections-memory", before, plan)
        with timed() as use:
            await asyncio.gather(*(subject.select() for _ in range(10 * plan.scale)))
    finally:
        await subject.close()
        await wait_until_closed(watcher)
    return {
        "scale-connections": opening.spent * 1e3,
        "scale-connections-use": use.spent / plan.scale / 10 * 1e6,
        **taken,
    }


async def _hold_all(borrow: Borrow, number: int) -> None:
    """Borrow all connections at the same time, and return them."""
    ready, held = asyncio.Event(), 0

    async def hold() -> None:
        nonlocal held
        async with borrow():
            held += 1
            if held == number:
                ready.set()
            await ready.wait()

    await asyncio.gather(*(hold() for _ in range(number)))


Use = Callable[[int], Awaitable[None]]
Close = Callable[[], Awaitable[object]]


async def _many_pools(found: Callable[[Plan], tuple[Use, Close]], plan: Plan) -> dict[str, float]:
    before = resident_memory()
    use, close = found(plan)
    try:
        with timed() as opening:
            for start in range(0, plan.scale, AT_ONCE):
                numbers = range(start, min(start + AT_ONCE, plan.scale))
                await asyncio.gather(*map(use, numbers))
        taken = _taken("scale-pools-memory", before, plan)
        with timed() as again:
            await asyncio.gather(*map(use, range(plan.scale)))
    finally:
        await close()
    return {
        "scale-pools": opening.spent * 1e3,
        "scale-pools-use": again.spent / plan.scale * 1e6,
        **taken,
    }


def _manager(plan: Plan) -> tuple[Use, Close]:
    """Use asyncpool's pool manager; all its pools have the same server."""
    manager: PoolManager[int] = PoolManager(
        lambda _: plan.dsn, max_connections=plan.scale, max_size=1, timeout=plan.timeout
    )

    async def use(key: int) -> None:
        async with manager.connection(key):
            pass

    return use, manager.close


def _pools(make: Maker, plan: Plan) -> tuple[Use, Close]:
    """Use a pool object for each, as an application does that has no manager."""
    subjects = [make(Setup(plan.dsn, 1, plan.timeout)) for _ in range(plan.scale)]
    opened = [False] * plan.scale

    async def use(key: int) -> None:
        if not opened[key]:
            opened[key] = True
            await subjects[key].open()
        async with subjects[key].borrow():
            pass

    async def close() -> None:
        await asyncio.gather(*(each.close() for each in subjects))

    return use, close


async def _then_wait(turn: Turn, watcher: psycopg.AsyncConnection) -> dict[str, float]:
    try:
        return await turn()
    finally:
        await wait_until_closed(watcher)


def _taken(key: str, before: int, plan: Plan) -> dict[str, float]:
    """Return the memory taken since `before`, as a figure; none where it is unknown."""
    now = resident_memory()
    return {key: max(now - before, 1) / plan.scale / 1e3} if now else {}


def resident_memory() -> int:
    """Return the bytes of this process that are in memory, without what is freed already.

    Without Linux's /proc it is always 0.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory, which the next pool would use
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
