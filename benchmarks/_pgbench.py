"""pgbench, PostgreSQL's own benchmark in C, whose rate is an upper bound for the pools.

pgbench takes a turn in each round, like a pool. It gets the connection string by the environment,
since every user can read a program's arguments.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import NamedTemporaryFile

from psycopg.pq import Conninfo

from benchmarks._plan import Plan
from benchmarks._pools import PGBENCH
from benchmarks._rounds import Bench, Turn
from benchmarks._sql import SELECT

MODES = ("prepared", "simple")
RATE = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)


def find() -> str | None:
    """Find the program, also in Debian's folders outside the PATH."""
    places = Path("/usr/lib/postgresql").glob(f"*/bin/{PGBENCH}")
    newest = max(places, key=lambda place: float(place.parts[-3]), default=None)
    return shutil.which(PGBENCH) or (None if newest is None else str(newest))


def turns(bench: Bench, key: str, threads: int = 2) -> dict[str, Turn]:
    """Return a turn for each protocol; without the program, add a note and return none."""
    if (program := find()) is None:
        bench.notes.append(f"{PGBENCH} is left out: there is no such program")
        return {}
    return {
        f"{PGBENCH} -M {mode}": partial(_turn, [program, "-M", mode], bench.plan, key, threads)
        for mode in MODES
    }


def environment(dsn: str) -> dict[str, str]:
    """Return the environment variables from which libpq reads a connection string's settings."""
    options = Conninfo.parse(dsn.encode())
    given = {each.envvar: each.val for each in options if each.envvar and each.val is not None}
    return {name.decode(): value.decode() for name, value in given.items()}


async def _turn(command: list[str], plan: Plan, key: str, threads: int) -> dict[str, float]:
    """Measure the microseconds a query of all clients together, without the connects."""
    clients = ["-c", str(plan.size), "-j", str(min(threads, plan.size))]
    with NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(f"{SELECT};\n")
        script.flush()
        process = await asyncio.create_subprocess_exec(
            *(*command, *clients, "-n", "-t", str(plan.pgbench), "-f", script.name),
            env={**os.environ, **environment(plan.dsn)},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        output, errors = await process.communicate()
    # Before PostgreSQL 14 there are two rates; the last one excludes the connects.
    rates = RATE.findall(output.decode())
    if process.returncode or not rates:
        msg = f"pgbench ended with status {process.returncode}: {errors.decode().strip()[-200:]}"
        raise RuntimeError(msg)
    return {key: 1e6 / float(rates[-1])}
