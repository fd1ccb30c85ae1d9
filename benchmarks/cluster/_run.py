"""The run: new servers and a process for each cell, one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from asyncpool.testing import postgres
from benchmarks._facts import facts, server_version
from benchmarks._network import NoNetwork
from benchmarks.cluster._figures import Cell, evaluate
from benchmarks.cluster._peers import MODULES, MOST, SIZE
from benchmarks.cluster._rows import ROWS, Row
from benchmarks.cluster._trial import RATES, Hung, Trial
from benchmarks.cluster._trio import trio


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    rows: list[str]
    pools: list[str]
    pace: float
    """The factor of all times."""


async def run(settings: Settings, report: Callable[[Cell], None]) -> dict[str, Any]:
    """Run all cells; return the report, as in the JSON.

    Args:
        settings: what to run.
        report: is called with each cell when it is done.
    """
    found = facts()
    async with postgres() as server:
        found["postgresql"] = await server_version(server.dsn)
    cells = []
    for key in settings.rows:
        for pool in settings.pools:
            if pool in ROWS[key].pools:
                cells.append(await _cell(ROWS[key], pool, settings.pace))
                report(cells[-1])
    return {
        "facts": found,
        "settings": {**vars(settings), "size": SIZE, "most": MOST, "rates": RATES},
        "rows": {key: ROWS[key].title for key in settings.rows},
        "pools": settings.pools,
        "cells": [cell.record() for cell in cells],
    }


async def _cell(row: Row, pool: str, pace: float) -> Cell:
    if pool in MODULES and find_spec(MODULES[pool]) is None:
        return Cell(row.key, pool, f"{MODULES[pool]} is not installed")
    async with trio(synchronous=row.synchronous) as servers:
        trial = Trial(servers, pool, pace)
        try:
            await row.play(trial)
            await trial.read_ledger(promoted=row.promoted)
        except (Hung, NoNetwork) as error:
            return Cell(row.key, pool, str(error))
        finally:
            await trial.close()
    return evaluate(row.key, pool, trial.observed, balance=row.balance)
