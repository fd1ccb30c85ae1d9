"""Faults of backends, and of a server that is stopped, killed, paused or not started yet."""

from __future__ import annotations

from functools import partial

from asyncpool.testing import Server
from benchmarks.faults._fault import Fault
from benchmarks.faults._load import LONG
from benchmarks.faults._trial import Trial


async def _idle(trial: Trial, count: int) -> None:
    """Terminate the backends used last, which most pools lease first."""
    await trial.start()
    async with trial.while_idle():
        await trial.terminate((await trial.pids())[-count:])
    await trial.finish()


async def _leased(trial: Trial) -> None:
    await trial.start()
    await trial.command("occupy", seconds=LONG)
    with trial.breaking():
        await trial.terminate(await trial.pids())
    await trial.finish()


async def _restarted(trial: Trial, mode: str) -> None:
    await trial.start()
    async with trial.outage():
        async with trial.while_idle():
            await _down(trial.server, mode)
        await trial.server.start()
    await trial.finish()


async def _paused(trial: Trial) -> None:
    await trial.start()
    async with trial.outage():
        await trial.server.pause()
        await trial.wait(10, 1.5)
        await trial.server.resume()
    await trial.finish()


async def _down_at_start(trial: Trial) -> None:
    async with trial.outage():
        await trial.server.stop()
        await trial.start(wait=False)
        await trial.wait(5 - trial.lead, 0.7)
        await trial.server.start()
    await trial.finish()


async def _down_for_long(trial: Trial) -> None:
    """Stop the server for less than the limit of requests, so that each could be served."""
    await trial.start(limit=45)
    async with trial.outage():
        async with trial.while_idle():
            await trial.server.stop()
        await trial.wait(30, 2)
        await trial.server.start()
    await trial.finish()


async def _down(server: Server, mode: str) -> None:
    if mode == "kill":
        await server.kill()
    else:
        await server.stop("immediate" if mode == "immediate" else "fast")


FAULTS = (
    Fault("idle-one", "one idle backend terminated", partial(_idle, count=1)),
    Fault("idle-all", "all idle backends terminated", partial(_idle, count=Trial.size)),
    Fault("leased-all", "all terminated while leased", _leased),
    Fault("restart-fast", "server restarted, fast", partial(_restarted, mode="fast")),
    Fault(
        "restart-immediate", "server restarted, immediate", partial(_restarted, mode="immediate")
    ),
    Fault("kill", "server killed (`kill -9`), started again", partial(_restarted, mode="kill")),
    Fault("paused", "server paused (SIGSTOP) for 10 s", _paused),
    Fault("down-at-start", "server down at start, up 5 s later", _down_at_start),
    Fault("down-30", "server down for 30 s under load", _down_for_long),
)
