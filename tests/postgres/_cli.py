"""Run the command line as its users do: a process, its output, its exit status."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds until a test fails; each step should take less than a fifth of it."""
HIDDEN = "never-to-be-seen"


class Outcome(NamedTuple):
    """The result of a run of the program."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, parsed as JSON."""
        return json.loads(self.out)


def hidden_in(arguments: Iterable[str]) -> set[str]:
    """Return the texts that a run with these arguments must not show."""
    found = {HIDDEN}
    for each in arguments:
        with suppress(psycopg.ProgrammingError):
            found.add(str(conninfo_to_dict(each).get("password") or HIDDEN))
    return found


async def run(*arguments: str, **environment: str) -> Outcome:
    """Run the program to its end; check that no traceback and no password was shown."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    kept.pop("DATABASE_URL", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncpool.cli", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | environment,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), LIMIT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    outcome = Outcome(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in outcome.out + outcome.err, outcome
    for hidden in hidden_in(arguments):
        assert hidden not in outcome.out + outcome.err, outcome
    return outcome


@contextmanager
def silence() -> Iterator[str]:
    """Simulate a silent network: connections are accepted and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        yield f"host=127.0.0.1 port={port} user=app dbname=app password={HIDDEN}"


@contextmanager
def bouncer(dsn: str, *, console: bool = True, **settings: object) -> Iterator[str]:
    """Run a PgBouncer with these settings; yield a connection string through it.

    Args:
        dsn: the server's connection string.
        console: whether its user may use PgBouncer's console.
        settings: PgBouncer's settings.
    """
    program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")
    if program is None:
        pytest.skip("there is no pgbouncer on the PATH, nor in $PGBOUNCER")
    there = conninfo_to_dict(dsn)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own: dict[str, object] = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "plain",
    }
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        Path(folder).chmod(0o755)
        file, users = Path(folder) / "ini", Path(folder) / "users"
        users.write_text(f'"{there["user"]}" "{there["password"]}"\n')
        own["auth_file"] = users
        if console:
            own["admin_users"] = there["user"]
        lines = [f"{name} = {value}" for name, value in (own | settings).items()]
        target = f"host={there['host']} port={there['port']} user={there['user']}"
        target += f" password={there['password']}"
        databases = f"{there['dbname']} = {target}"
        file.write_text("\n".join(["[databases]", databases, "[pgbouncer]", *lines, ""]))
        for secret in (file, users):
            secret.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(secret, "nobody")
        process = subprocess.Popen(
            [program, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user="nobody" if os.geteuid() == 0 else None,  # as root it refuses to run
        )
        try:
            through = make_conninfo(dsn, host="127.0.0.1", port=port)
            _await_answer(process, through)
            yield through
        finally:
            process.terminate()
            process.wait()


def _await_answer(process: subprocess.Popen[bytes], dsn: str) -> None:
    deadline = monotonic() + LIMIT
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            assert process.poll() is None, "pgbouncer has ended"
            assert monotonic() < deadline, "pgbouncer does not answer"
        else:
            return
