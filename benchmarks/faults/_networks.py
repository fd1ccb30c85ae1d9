"""Faults of the network between the pool and the server."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks._network import Network
from benchmarks.faults._fault import Fault
from benchmarks.faults._proxied import proxied
from benchmarks.faults._trial import Trial, wait_until


async def _dropped(trial: Trial) -> None:
    with Network(trial.server.dsn) as network:
        await trial.start(_by(network, trial))
        async with trial.while_idle():
            network.fall_silent()
        await trial.wait(10, 1.5)
        network.speak()
        await trial.finish()


async def _rejected(trial: Trial) -> None:
    with Network(trial.server.dsn) as network:
        await trial.start(_by(network, trial))
        async with trial.while_idle():
            network.refuse()
        await trial.wait(5, 1)
        network.admit()
        await trial.finish()


def _by(network: Network, trial: Trial) -> str:
    parts = conninfo_to_dict(network.dsn)
    return make_conninfo(trial.dsn, host=parts["host"], port=parts["port"])


async def _slow(trial: Trial) -> None:
    async with proxied(trial.dsn) as (dsn, proxy):
        await trial.start(dsn)
        proxy.lag = 0.1
        await trial.wait(5, 1)
        proxy.lag = 0.0
        await trial.finish()


async def _trickling(trial: Trial) -> None:
    async with proxied(trial.dsn) as (dsn, proxy):
        await trial.start(dsn)
        proxy.piece = 3
        await trial.wait(5, 1)
        proxy.piece = 0
        await trial.finish()


async def _cut(trial: Trial) -> None:
    async with proxied(trial.dsn) as (dsn, proxy):
        await trial.start(dsn)
        await trial.command("occupy", seconds=0.5)
        with trial.breaking():
            proxy.cut()
            await wait_until(lambda: proxy.cuts == trial.size, 5)
        await trial.finish()


FAULTS = (
    Fault("dropped", "packets dropped for 10 s", _dropped),
    Fault("rejected", "packets rejected for 5 s", _rejected),
    Fault("slow", "all data delayed by 0.1 s each way for 5 s", _slow),
    Fault("trickle", "all data in pieces of 3 bytes for 5 s", _trickling),
    Fault("cut", "all connections cut in the middle of a message", _cut),
)
