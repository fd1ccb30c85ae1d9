"""Another server takes over, or PgBouncer stands between and is restarted."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing._backend import free_port
from benchmarks.faults._cast import readable
from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import NotHere, Stage, until


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
            async with stage.at_rest():
                await stage.server.stop()
            await standby.promote()
            stage.watched = make_conninfo(standby.dsn, application_name="faults-observer")
        await stage.over()


async def _restarted(stage: Stage) -> None:
    """Its clients are what is counted: the backends are its own."""
    with Bouncer(stage.dsn) as bouncer:
        stage.count = bouncer.clients
        await bouncer.start()
        await stage.begin(bouncer.dsn, prepares=False)
        async with stage.away():
            async with stage.at_rest():
                bouncer.stop()
            await asyncio.sleep(0.2)
            await bouncer.start()
        await stage.over()


class Bouncer:
    """A PgBouncer before the server of a connection string, in transaction mode.

    Raises:
        NotHere: there is none on this machine.
    """

    def __init__(self, dsn: str) -> None:
        program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")
        if program is None:
            msg = "there is no pgbouncer on the PATH, nor in $PGBOUNCER"
            raise NotHere(msg)
        self._program = program
        self._there = conninfo_to_dict(dsn)
        self._port = free_port()
        self._file = ""
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.dsn = make_conninfo(dsn, port=self._port)

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-"))
        text = (
            "[databases]\n"
            f"app = host={self._there['host']} port={self._there['port']} user=app"
            f" password={self._there['password']}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self._port}\nunix_socket_dir =\n"
            f"auth_type = plain\nauth_file = {folder}/users\nadmin_users = app\n"
            "pool_mode = transaction\nignore_startup_parameters = extra_float_digits\n"
        )
        self._file = readable(folder, "ini", text)
        users = readable(folder, "users", f'"app" "{self._there["password"]}"\n')
        for file in (self._file, users):
            os.chmod(file, 0o600)  # noqa: PTH101
            if os.geteuid() == 0:
                shutil.chown(file, "nobody")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._stack.close()

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time
            [self._program, self._file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user="nobody" if os.geteuid() == 0 else None,  # as root it refuses to run
        )

        async def answers() -> bool:
            try:
                await self.clients()
            except psycopg.OperationalError:
                return False
            return True

        await until(answers, 10)

    def stop(self) -> None:
        """End it, as it ends without waiting for its clients."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    async def clients(self) -> int:
        """How many sessions it has of the database `app`."""
        admin = make_conninfo(self.dsn, dbname="pgbouncer")
        connect = psycopg.AsyncConnection[Any].connect
        # Its console knows simple queries only.
        async with await connect(
            admin, autocommit=True, cursor_factory=psycopg.AsyncClientCursor
        ) as conn:
            cur = await conn.execute("SHOW CLIENTS")
            names = [column.name for column in cur.description or ()]
            place = names.index("database")
            return sum(row[place] == "app" for row in await cur.fetchall())


SCENES = (
    Scene("failover", "primary stopped, standby promoted", _failover),
    Scene("pgbouncer", "PgBouncer in front, restarted", _restarted),
)
