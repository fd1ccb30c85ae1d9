"""One pool after another, fault by fault, each on a server of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.util import find_spec

from benchmarks._network import NoNetwork
from benchmarks.faults._cast import make_database, make_user
from benchmarks.faults._peers import MODULES
from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import Hung, NotHere, Stage
from benchmarks.faults._verdict import Cell, judge

ABSENT = "not run here"


async def run(scenes: list[Scene], pools: list[str], *, quick: bool) -> AsyncIterator[Cell]:
    """The cells, as they are done."""
    for scene in scenes:
        for pool in pools:
            yield await play(scene, pool, quick=quick)


async def play(scene: Scene, pool: str, *, quick: bool) -> Cell:
    """One cell."""
    module = MODULES.get(pool.split("-", maxsplit=1)[0])
    if module is not None and find_spec(module) is None:
        return Cell(scene.key, pool, ABSENT, f"{module} is not installed")
    async with scene.server() as server:
        await make_user(server.dsn)
        await make_database(server.dsn)
        stage = Stage(server, pool, quick=quick)
        try:
            await scene.play(stage)
        except (NotHere, NoNetwork) as error:
            return Cell(scene.key, pool, ABSENT, str(error))
        except Hung as error:
            return Cell(scene.key, pool, "hung", str(error))
        finally:
            await stage.close()
        return judge(scene.key, pool, stage.seen, limit=stage.limit, size=stage.size)
