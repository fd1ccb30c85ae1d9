"""What a token costs: `python -m benchmarks.tokens`.

A primary and a standby on this machine, one task. Each kind of request is measured in turns with
the others, so that what else runs on the machine meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import Cluster
from asyncpool.testing import postgres

READ = "SELECT n FROM counter WHERE id = 1"
WRITE = "UPDATE counter SET n = n + 1 WHERE id = 1"
Request = Callable[[], Awaitable[float]]
"""Runs a request; returns the seconds that its measured part took."""


def kinds_of(cluster: Cluster[Any], old: str) -> dict[str, Request]:
    """Return the kinds of requests by their names."""

    async def timed(work: Awaitable[object]) -> float:
        began = time.perf_counter()
        await work
        return time.perf_counter() - began

    async def read() -> float:
        return await timed(cluster.read.fetchval(READ))

    async def read_after_known() -> float:
        return await timed(cluster.read.fetchval(READ, after=old))

    async def read_after_write() -> float:
        await cluster.write.execute(WRITE)
        token = await cluster.write.token()
        return await timed(cluster.read.fetchval(READ, after=token))

    async def read_plainly_after_write() -> float:
        await cluster.write.execute(WRITE)
        return await timed(cluster.read.fetchval(READ))

    async def token() -> float:
        return await timed(cluster.write.token())

    async def block() -> None:
        async with cluster.write.connection() as conn:
            await conn.execute(WRITE)

    async def plain_block() -> float:
        return await timed(block())

    async def noted_block() -> float:
        with cluster.own_writes():
            return await timed(block())

    return {
        "read": read,
        "read, with a token that is known to be replayed": read_after_known,
        "read right after a write": read_plainly_after_write,
        "read right after a write, with its token": read_after_write,
        "write.token()": token,
        "block that writes": plain_block,
        "block that writes, in own_writes()": noted_block,
    }


async def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each request of each kind."""
    async with postgres() as primary, primary.standby() as standby:
        ports = ",".join(str(conninfo_to_dict(each.dsn)["port"]) for each in (primary, standby))
        dsn = make_conninfo(primary.dsn, host="127.0.0.1,127.0.0.1", port=ports)
        async with Cluster(dsn, min_size=1, max_size=4) as cluster:
            await cluster.wait()
            await cluster.write.execute("CREATE TABLE counter AS SELECT 1 AS id, 0 AS n")
            old = await cluster.write.token()
            await asyncio.sleep(2.0)  # until a look has found it replayed
            kinds = kinds_of(cluster, old)
            times: dict[str, list[float]] = {name: [] for name in kinds}
            for number in range(rounds + rounds // 10):
                for name, request in kinds.items():
                    seconds = await request()
                    if number >= rounds // 10:
                        times[name].append(seconds)
            return times


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    times = asyncio.run(measure(rounds))
    print(f"{rounds} rounds, one task; milliseconds")
    print(f"{'':<50}{'p50':>8}{'p99':>8}")
    for name, each in times.items():
        p99 = statistics.quantiles(each, n=100)[-1]
        print(f"{name:<50}{statistics.median(each) * 1000:>8.3f}{p99 * 1000:>8.3f}")


if __name__ == "__main__":
    main()
