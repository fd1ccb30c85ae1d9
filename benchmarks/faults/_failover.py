"""Faults of setups with two servers: a failover, and a restart of PgBouncer."""

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
from benchmarks.faults._database import public_file
from benchmarks.faults._fault import Fault
from benchmarks.faults._trial import Trial, Unsupported, wait_until


async def _failover(trial: Trial) -> None:
    async with trial.server.standby() as standby:
        ports = [str(conninfo_to_dict(each.dsn)["port"]) for each in (trial.server, standby)]
        both = make_conninfo(
            trial.dsn,
            host="127.0.0.1,127.0.0.1",
            port=",".join(ports),
            target_session_attrs="read-write",
        )
        await trial.start(both)
        async with trial.outage():
            async with trial.while_idle():
                await trial.server.stop()
            await standby.promote()
            trial.observer_dsn = make_conninfo(standby.dsn, application_name="faults-observer")
        await trial.finish()


async def _restarted(trial: Trial) -> None:
    """Count PgBouncer's clients instead of backends, which belong to PgBouncer."""
    with Bouncer(trial.dsn) as bouncer:
        trial.count = bouncer.clients
        await bouncer.start()
        await trial.start(bouncer.dsn, prepares=False)
        async with trial.outage():
            async with trial.while_idle():
                bouncer.stop()
            await asyncio.sleep(0.2)
            await bouncer.start()
        await trial.finish()


class Bouncer:
    """A PgBouncer in transaction mode in front of the server of a connection string.

    Raises:
        Unsupported: this machine has no PgBouncer.
    """

    def __init__(self, dsn: str) -> None:
        program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")
        if program is None:
            msg = "pgbouncer is neither on the PATH nor in $PGBOUNCER"
            raise Unsupported(msg)
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
        self._file = public_file(folder, "ini", text)
        users = public_file(folder, "users", f'"app" "{self._there["password"]}"\n')
        for file in (self._file, users):
            os.chmod(file, 0o600)  # noqa: PTH101
            if os.geteuid() == 0:
                shutil.chown(file, "nobody")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._stack.close()

    async def start(self) -> None:
        """Start PgBouncer and wait until it answers."""
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time
            [self._program, self._file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user="nobody" if os.geteuid() == 0 else None,  # it refuses to run as root
        )

        async def answers() -> bool:
            try:
                await self.clients()
            except psycopg.OperationalError:
                return False
            return True

        await wait_until(answers, 10)

    def stop(self) -> None:
        """Stop PgBouncer; it does not wait for its clients."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    async def clients(self) -> int:
        """Return the number of client sessions of the database `app`."""
        admin = make_conninfo(self.dsn, dbname="pgbouncer")
        connect = psycopg.AsyncConnection[Any].connect
        # The console only accepts simple queries.
        async with await connect(
            admin, autocommit=True, cursor_factory=psycopg.AsyncClientCursor
        ) as conn:
            cur = await conn.execute("SHOW CLIENTS")
            names = [column.name for column in cur.description or ()]
            place = names.index("database")
            return sum(row[place] == "app" for row in await cur.fetchall())


FAULTS = (
    Fault("failover", "primary stopped, standby promoted", _failover),
    Fault("pgbouncer", "PgBouncer in front, restarted", _restarted),
)
