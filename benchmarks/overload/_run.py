"""The run: a process for each cell, one after another, on the same server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from subprocess import PIPE
from typing import Any

import psycopg

from benchmarks._facts import facts, server_version
from benchmarks._plan import ROOT
from benchmarks.overload._figures import Cell
from benchmarks.overload._peers import CREATE, DROP, MODULES
from benchmarks.overload._rows import COST, ROWS, SIZE, USE

LIMIT = 120.0
"""Seconds beyond its measured time after which the process of a cell hangs."""
COST_TITLE = "CPU time of a request that gets no connection"


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    rows: list[str]
    peers: list[str]
    seconds: float
    """The measured time of a cell."""
    seed: int
    probe: float = 1.0
    """Seconds of the closed loop by which the capacity is measured."""


async def run(settings: Settings, dsn: str, report: Callable[[Cell], None]) -> dict[str, Any]:
    """Run all cells; return the report, as in the JSON.

    Args:
        settings: what to run.
        dsn: the server.
        report: is called with each cell when it is done.
    """
    cells = []
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(CREATE)
        try:
            for row in settings.rows:
                for peer in settings.peers:
                    if can_play(row, peer):
                        cells.append(await _cell(row, peer, settings, dsn))
                        report(cells[-1])
        finally:
            await conn.execute(DROP)
    return {
        "facts": {**facts(), "postgresql": await server_version(dsn)},
        "settings": {**vars(settings), "size": SIZE, "use": USE},
        "rows": {key: title(key) for key in settings.rows},
        "peers": settings.peers,
        "cells": [cell.record() for cell in cells],
    }


def can_play(row: str, peer: str) -> bool:
    """Whether a pool can do what a row needs."""
    return row == COST or (pools := ROWS[row].pools) is None or peer in pools


def title(row: str) -> str:
    """Return the title of a row."""
    return COST_TITLE if row == COST else ROWS[row].title


async def _cell(row: str, peer: str, settings: Settings, dsn: str) -> Cell:
    if peer in MODULES and find_spec(MODULES[peer]) is None:
        return Cell(row, peer, f"{MODULES[peer]} is not installed")
    given = {"row": row, "pool": peer, "dsn": dsn, "seconds": settings.seconds}
    given |= {"seed": settings.seed, "probe": settings.probe}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.overload._worker"),
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(settings.seconds + LIMIT):
            output, problem = await process.communicate(json.dumps(given).encode())
    except TimeoutError:
        return Cell(row, peer, "its process hangs")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = problem.decode(errors="replace").strip().splitlines() or ["no message"]
        return Cell(row, peer, f"its process ended with status {process.returncode}: {lines[-1]}")
    return Cell(**json.loads(output))
