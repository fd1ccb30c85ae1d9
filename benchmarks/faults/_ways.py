"""Faults of the way to the server: its packets, or a proxy before it."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks._network import Network
from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import Stage, until
from benchmarks.faults._through import through


async def _dropped(stage: Stage) -> None:
    with Network(stage.server.dsn) as network:
        await stage.begin(_by(network, stage))
        async with stage.at_rest():
            network.fall_silent()
        await stage.wait(10, 1.5)
        network.speak()
        await stage.over()


async def _rejected(stage: Stage) -> None:
    with Network(stage.server.dsn) as network:
        await stage.begin(_by(network, stage))
        async with stage.at_rest():
            network.refuse()
        await stage.wait(5, 1)
        network.admit()
        await stage.over()


def _by(network: Network, stage: Stage) -> str:
    parts = conninfo_to_dict(network.dsn)
    return make_conninfo(stage.dsn, host=parts["host"], port=parts["port"])


async def _slow(stage: Stage) -> None:
    async with through(stage.dsn) as (dsn, proxy):
        await stage.begin(dsn)
        proxy.lag = 0.1
        await stage.wait(5, 1)
        proxy.lag = 0.0
        await stage.over()


async def _trickling(stage: Stage) -> None:
    async with through(stage.dsn) as (dsn, proxy):
        await stage.begin(dsn)
        proxy.piece = 3
        await stage.wait(5, 1)
        proxy.piece = 0
        await stage.over()


async def _cut(stage: Stage) -> None:
    async with through(stage.dsn) as (dsn, proxy):
        await stage.begin(dsn)
        await stage.say("lend", seconds=0.5)
        with stage.striking():
            proxy.cut()
            await until(lambda: proxy.cuts == stage.size, 5)
        await stage.over()


SCENES = (
    Scene("dropped", "packets dropped for 10 s", _dropped),
    Scene("rejected", "packets rejected for 5 s", _rejected),
    Scene("slow", "all delayed by 0.1 s each way for 5 s", _slow),
    Scene("trickle", "all in pieces of 3 bytes for 5 s", _trickling),
    Scene("cut", "all connections cut in mid-message", _cut),
)
