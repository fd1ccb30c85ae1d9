"""Faults of the way to the server: packets, a proxy, another server, PgBouncer."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing._backend import free_port
from benchmarks._network import Network
from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import NotHere, Stage
from benchmarks.faults._through import through


async def _dropped(stage: Stage) -> None:
    with Network(stage.server.dsn) as network:
        await stage.begin(_by(network, stage))
        with stage.striking():
            network.fall_silent()
        await stage.wait(10, 1.5)
        network.speak()
        await stage.over()


async def _rejected(stage: Stage) -> None:
    with Network(stage.server.dsn) as network:
        await stage.begin(_by(network, stage))
        with stage.striking():
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
        with stage.striking():
            proxy.cuts = stage.size
            deadline = time.monotonic() + 2
            while proxy.cuts and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            proxy.cuts = 0
        await stage.over()


async def _failover(stage: Stage) -> None:
    async with stage.server.standby() as standby:
        ports = [str(conninfo_to_dict(each.dsn)["port"]) for each in (stage.server, standby)]
        both = make_conninfo(
            stage.dsn,
            host="127.0.0.1,127.0.0.1",
            port=",".join(ports),
            target_session_attrs="read-write",
        )
        await stage.begin(both)
        async with stage.away():
            with stage.striking():
                await stage.server.stop()
            await standby.promote()
            stage.watched = make_conninfo(standby.dsn, application_name="faults-observer")
        await stage.over()


async def _bouncer(stage: Stage) -> None:
    """Its clients are counted: the backends are its own."""
    program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")
    if program is None:
        msg = "there is no pgbouncer on the PATH, nor in $PGBOUNCER"
        raise NotHere(msg)
    async with _configured(program, stage) as (command, dsn):

        async def clients() -> int:
            admin = make_conninfo(dsn, dbname="pgbouncer", application_name="")
            connect = psycopg.AsyncConnection[Any].connect
            kind = psycopg.AsyncClientCursor  # its console knows simple queries only
            async with await connect(admin, autocommit=True, cursor_factory=kind) as conn:
                cur = await conn.execute("SHOW CLIENTS")
                return sum("app" in row[1:4] and row[2] == "app" for row in await cur.fetchall())

        stage.count = clients
        who = {"user": "nobody"} if os.geteuid() == 0 else {}

        async def start() -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, **who
            )
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with suppress(psycopg.OperationalError):
                    await clients()
                    break
                await asyncio.sleep(0.01)
            return process

        process = await start()
        try:
            await stage.begin(dsn, prepares=False)
            async with stage.away():
                with stage.striking():
                    process.terminate()
                    await process.wait()
                await asyncio.sleep(0.2)
                process = await start()
            await stage.over()
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def _configured(program: str, stage: Stage) -> AsyncIterator[tuple[list[str], str]]:
    there = conninfo_to_dict(stage.dsn)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = folder / "ini"
        file.write_text(
            "[databases]\n"
            f"app = host={there['host']} port={there['port']} user=app\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        file.chmod(0o644)
        yield [program, os.fspath(file)], make_conninfo(stage.dsn, port=port)


SCENES = (
    Scene("dropped", "packets dropped for 10 s", _dropped),
    Scene("rejected", "packets rejected for 5 s", _rejected),
    Scene("slow", "all delayed by 0.1 s each way for 5 s", _slow),
    Scene("trickle", "all in pieces of 3 bytes for 5 s", _trickling),
    Scene("cut", "all connections cut in mid-message", _cut),
    Scene("failover", "primary stopped, standby promoted", _failover),
    Scene("pgbouncer", "PgBouncer in front, restarted", _bouncer),
)
