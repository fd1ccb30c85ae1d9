"""Run the trials: each fault for each pool, on a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

from asyncpool.testing import Server, ServerUnsupported
from benchmarks._network import NoNetwork
from benchmarks.faults._fault import Fault
from benchmarks.faults._figures import Cell, evaluate
from benchmarks.faults._peers import MODULES
from benchmarks.faults._servers import Servers
from benchmarks.faults._trial import Hung, Trial, Unsupported

ABSENT = "not run here"


async def run(
    faults: list[Fault],
    pools: list[str],
    report: Callable[[Cell], None],
    *,
    quick: bool = False,
    jobs: int = 1,
) -> list[Cell]:
    """Run all trials; return their cells in order.

    Args:
        faults, pools: the faults and the names of the pools.
        report: is called with each cell when it is done.
        quick: whether long faults are shortened.
        jobs: trials at the same time; with more than one, the times mean nothing.
    """
    gate = asyncio.Semaphore(jobs)

    async def one(fault: Fault, pool: str) -> Cell:
        async with gate:
            cell = await run_trial(fault, pool, servers, quick=quick)
            report(cell)
            return cell

    async with Servers(reuse=quick) as servers, asyncio.TaskGroup() as group:
        cells = [group.create_task(one(fault, pool)) for fault in faults for pool in pools]
    return [each.result() for each in cells]


async def run_trial(fault: Fault, pool: str, servers: Servers, *, quick: bool) -> Cell:
    """Run one trial; return its cell."""
    module = MODULES.get(pool.split("-", maxsplit=1)[0])
    if module is not None and find_spec(module) is None:
        return Cell(fault.key, pool, ABSENT, f"{module} is not installed")
    try:
        async with servers.one(fault) as server:
            return await _on(server, fault, pool, quick=quick)
    except (Unsupported, NoNetwork, ServerUnsupported) as error:
        return Cell(fault.key, pool, ABSENT, str(error))


async def _on(server: Server, fault: Fault, pool: str, *, quick: bool) -> Cell:
    trial = Trial(server, pool, quick=quick)
    try:
        await fault.inject(trial)
    except Hung as error:
        return Cell(fault.key, pool, "hung", str(error))
    finally:
        await trial.close()
    return evaluate(fault.key, pool, trial.observed, limit=trial.limit, size=trial.size)
