"""One pool after another, fault by fault, each on a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

from asyncpool.testing import Server, ServerUnsupported
from benchmarks._network import NoNetwork
from benchmarks.faults._peers import MODULES
from benchmarks.faults._scene import Scene
from benchmarks.faults._servers import Servers
from benchmarks.faults._stage import Hung, NotHere, Stage
from benchmarks.faults._verdict import Cell, judge

ABSENT = "not run here"


async def run(
    scenes: list[Scene],
    pools: list[str],
    tell: Callable[[Cell], None],
    *,
    quick: bool = False,
    jobs: int = 1,
) -> list[Cell]:
    """All cells, in order.

    Args:
        scenes, pools: which.
        tell: gets each cell when it is done.
        quick: whether long faults are short.
        jobs: cells at once; with more than one, times mean nothing.
    """
    gate = asyncio.Semaphore(jobs)

    async def one(scene: Scene, pool: str) -> Cell:
        async with gate:
            cell = await play(scene, pool, servers, quick=quick)
            tell(cell)
            return cell

    async with Servers(again=quick) as servers, asyncio.TaskGroup() as group:
        cells = [group.create_task(one(scene, pool)) for scene in scenes for pool in pools]
    return [each.result() for each in cells]


async def play(scene: Scene, pool: str, servers: Servers, *, quick: bool) -> Cell:
    """One cell."""
    module = MODULES.get(pool.split("-", maxsplit=1)[0])
    if module is not None and find_spec(module) is None:
        return Cell(scene.key, pool, ABSENT, f"{module} is not installed")
    try:
        async with servers.one(scene) as server:
            return await _on(server, scene, pool, quick=quick)
    except (NotHere, NoNetwork, ServerUnsupported) as error:
        return Cell(scene.key, pool, ABSENT, str(error))


async def _on(server: Server, scene: Scene, pool: str, *, quick: bool) -> Cell:
    stage = Stage(server, pool, quick=quick)
    try:
        await scene.play(stage)
    except Hung as error:
        return Cell(scene.key, pool, "hung", str(error))
    finally:
        await stage.close()
    return judge(scene.key, pool, stage.seen, limit=stage.limit, size=stage.size)
