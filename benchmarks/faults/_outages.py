"""Backends that die, and a server that stops, dies, stands still or is not there."""

from __future__ import annotations

from functools import partial

from asyncpool.testing import Server
from benchmarks.faults._load import LONG
from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import Stage


async def _idle(stage: Stage, count: int) -> None:
    """Those that were used last: a pool that lends them first has them in hand at once."""
    await stage.begin()
    async with stage.at_rest():
        await stage.terminate((await stage.pids())[-count:])
    await stage.over()


async def _lent(stage: Stage) -> None:
    await stage.begin()
    await stage.say("lend", seconds=LONG)
    with stage.striking():
        await stage.terminate(await stage.pids())
    await stage.over()


async def _restarted(stage: Stage, mode: str) -> None:
    await stage.begin()
    async with stage.away():
        async with stage.at_rest():
            await _down(stage.server, mode)
        await stage.server.start()
    await stage.over()


async def _paused(stage: Stage) -> None:
    await stage.begin()
    async with stage.away():
        await stage.server.pause()
        await stage.wait(10, 1.5)
        await stage.server.resume()
    await stage.over()


async def _down_at_start(stage: Stage) -> None:
    async with stage.away():
        await stage.server.stop()
        await stage.begin(wait=False)
        await stage.wait(5 - stage.lead, 0.7)
        await stage.server.start()
    await stage.over()


async def _down_for_long(stage: Stage) -> None:
    """Less long than a request may wait, so that each of them could be served."""
    await stage.begin(limit=45)
    async with stage.away():
        async with stage.at_rest():
            await stage.server.stop()
        await stage.wait(30, 2)
        await stage.server.start()
    await stage.over()


async def _down(server: Server, mode: str) -> None:
    if mode == "kill":
        await server.kill()
    else:
        await server.stop("immediate" if mode == "immediate" else "fast")


SCENES = (
    Scene("idle-one", "one idle backend terminated", partial(_idle, count=1)),
    Scene("idle-all", "all idle backends terminated", partial(_idle, count=Stage.size)),
    Scene("lent-all", "all terminated while lent", _lent),
    Scene("restart-fast", "server restarted, fast", partial(_restarted, mode="fast")),
    Scene(
        "restart-immediate", "server restarted, immediate", partial(_restarted, mode="immediate")
    ),
    Scene("kill", "server killed (`kill -9`), started again", partial(_restarted, mode="kill")),
    Scene("paused", "server paused (SIGSTOP) for 10 s", _paused),
    Scene("down-at-start", "server down at start, up 5 s later", _down_at_start),
    Scene("down-30", "server down for 30 s under load", _down_for_long),
)
