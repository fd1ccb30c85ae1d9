"""The cost of a connection: the memory of its backend, its connect, and a round trip.

The same through PgBouncer, if the machine has it: what a pooler would save, and what it would cost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import mean
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing._backend import free_port

BACKENDS, CONNECTS, ROUND_TRIPS = 10, 50, 1000
WARM = (
    "SELECT count(attname) FROM pg_catalog.pg_attribute",
    "SELECT count(*) FROM pg_catalog.pg_stat_activity",
    "SELECT count(*) FROM information_schema.columns",
)
"""Statements that a backend runs before its memory is read, which fill its caches."""
STARTS = 10.0
"""Seconds for PgBouncer to answer."""
Seconds = dict[str, float | None]


async def cost(dsn: str) -> dict[str, Any]:
    """Measure what a connection costs; what cannot be measured here is None."""
    found: dict[str, Any] = {"memory": await _memory(dsn), "direct": await _times(dsn)}
    program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")
    if program is not None:
        async with _bouncer(program, dsn) as through:
            found["pooled"] = await _times(through)
    return found


async def _memory(dsn: str) -> dict[str, float | None]:
    """The bytes that only a backend itself has: just connected, and after some queries."""
    async with AsyncExitStack() as stack:
        conns = []
        for _ in range(BACKENDS):
            conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            conns.append(await stack.enter_async_context(conn))
            await conn.execute("SELECT 1")
        pids = [conn.info.backend_pid for conn in conns]
        fresh = _private(pids)
        for conn in conns:
            for query in WARM:
                await conn.execute(query)
        return {"fresh": fresh, "used": _private(pids)}


def _private(pids: Iterable[int]) -> float | None:
    """The mean of the private memory of processes, in bytes; None: it cannot be read."""
    found = []
    with suppress(OSError):
        for pid in pids:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found.append(
                sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
            )
    return mean(found) if found else None


async def _times(dsn: str) -> Seconds:
    """The shortest connect and round trip, as other programs on the machine make most longer."""
    connects, trips = [], []
    for _ in range(CONNECTS):
        began = time.perf_counter()
        conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        connects.append(time.perf_counter() - began)
        await conn.close()
    async with await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, prepare_threshold=None
    ) as conn:
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            await conn.execute("SELECT 1")
            trips.append(time.perf_counter() - began)
    return {"connect": min(connects), "round_trip": min(trips)}


@asynccontextmanager
async def _bouncer(program: str, dsn: str) -> AsyncIterator[str]:
    """Run a PgBouncer in transaction mode; yield a connection string through it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        file = _write(Path(folder), dsn, port)
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time
            [program, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user="nobody" if os.geteuid() == 0 else None,  # it refuses to run as root
        )
        try:
            through = make_conninfo(dsn, host="127.0.0.1", port=port)
            await _answers(through)
            yield through
        finally:
            process.terminate()
            process.wait()


def _write(folder: Path, dsn: str, port: int) -> Path:
    """Write PgBouncer's configuration into a folder."""
    there = conninfo_to_dict(dsn)
    folder.chmod(0o755)
    file, users = folder / "ini", folder / "users"
    users.write_text(f'"{there["user"]}" "{there["password"]}"\n')
    file.write_text(
        f"[databases]\n* = host={there['host']} port={there['port']}"
        f" user={there['user']} password={there['password']}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {users}\npool_mode = transaction\n"
    )
    for secret in (file, users):
        secret.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(secret, "nobody")
    return file


async def _answers(dsn: str) -> None:
    async with asyncio.timeout(STARTS):
        while True:
            try:
                conn = await psycopg.AsyncConnection.connect(dsn)
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)
            else:
                await conn.close()
                return
