"""The run: for each cell a server, its processes, and the steps of the row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import psycopg

from asyncpool.testing import Server, postgres
from asyncpool.testing._backend import SettingValue
from benchmarks._facts import facts, server_version
from benchmarks.fleet._cost import cost
from benchmarks.fleet._figures import Cell, evaluate
from benchmarks.fleet._peers import MODULES
from benchmarks.fleet._processes import MemberProcess
from benchmarks.fleet._rows import (
    KEPT,
    PLACES,
    RESERVE,
    RESERVED,
    ROWS,
    SIZE,
    TASKS,
    USE,
    Action,
    Row,
    Step,
)
from benchmarks.fleet._watch import BYSTANDER, ROLE, SESSIONS, Watch, role

GONE = 5.0
"""Seconds for the server to end the sessions of processes that have ended."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    rows: list[str]
    peers: list[str]
    scale: float
    """By which all times of the rows are multiplied."""


async def run(settings: Settings, report: Callable[[Cell], None]) -> dict[str, Any]:
    """Run all cells; return the report, as in the JSON.

    Args:
        settings: what to run.
        report: is called with each cell when it is done.
    """
    cells = []
    async with _server() as server:
        version = await server_version(server.dsn)
        costs = await cost(server.dsn)
    for key in settings.rows:
        for peer in settings.peers:
            if peer in MODULES and find_spec(MODULES[peer]) is None:
                cells.append(Cell(key, peer, f"{MODULES[peer]} is not installed"))
            else:
                async with _server() as server:
                    cells.append(await _cell(ROWS[key], peer, settings.scale, server))
            report(cells[-1])
    return {
        "facts": {**facts(), "postgresql": version},
        "settings": {
            **vars(settings),
            "places": PLACES,
            "kept": KEPT,
            "reserve": RESERVE,
            "size": SIZE,
            "tasks": TASKS,
            "use": USE,
        },
        "cost": costs,
        "rows": {key: ROWS[key].title for key in settings.rows},
        "peers": settings.peers,
        "cells": [cell.record() for cell in cells],
    }


def _server() -> AbstractAsyncContextManager[Server]:
    settings: dict[str, SettingValue] = {"superuser_reserved_connections": RESERVED}
    return postgres(max_connections=PLACES + KEPT, settings=settings)


async def _cell(row: Row, peer: str, scale: float, server: Server) -> Cell:
    cell = Cell(row.key, peer, places=PLACES)
    async with role(server.dsn) as member:
        for step in row.steps:
            if step.action is Action.RESTART:
                await _set_places(server.dsn, step.places)  # in force from the restart on
        given = {"pool": peer, "dsn": member, "use": row.use, "sizes": {}}
        async with (
            _members(row.members, given, cell) as members,
            _watching(server, member) as watch,
        ):
            start = time.monotonic()
            restarted_at = 0.0
            for step in row.steps:
                await _until(start + step.at * scale)
                await _do(step, members, server)
                if step.action is Action.RESTART:
                    restarted_at, cell.places = time.monotonic(), step.places
            await _until(start + row.seconds * scale)
        cell.left = await _left(server.dsn)
        evaluate(cell, row, [each.lines for each in members], start, scale)
        cell.most = max(number for at, number in watch.sessions if at > restarted_at)
        cell.connects, cell.refused = watch.connects, watch.refused
    return cell


async def _do(step: Step, members: list[MemberProcess], server: Server) -> None:
    if step.action is Action.RESTART:
        await server.restart()
        return
    for number in step.members:
        members[number].do(step.action)


async def _set_places(dsn: str, places: int) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(f"ALTER SYSTEM SET max_connections = {places + KEPT}")


@asynccontextmanager
async def _members(
    number: int, given: dict[str, Any], cell: Cell
) -> AsyncIterator[list[MemberProcess]]:
    async with asyncio.TaskGroup() as group:
        starting = [group.create_task(MemberProcess.start(given)) for _ in range(number)]
    members = [task.result() for task in starting]
    try:
        yield members
    finally:
        cell.hung = sum(await asyncio.gather(*(each.end() for each in members)))


@asynccontextmanager
async def _watching(server: Server, member: str) -> AsyncIterator[Watch]:
    watch = Watch(server.dsn, member)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _left(dsn: str) -> int:
    """How many sessions of the processes the server still has some seconds after their end."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        deadline = time.monotonic() + GONE
        while True:
            cursor = await conn.execute(SESSIONS, (ROLE, BYSTANDER))
            (number,) = await cursor.fetchone() or (0,)
            if not number or time.monotonic() > deadline:
                return int(number)
            await asyncio.sleep(0.05)


async def _until(instant: float) -> None:
    if (wait := instant - time.monotonic()) > 0:
        await asyncio.sleep(wait)
