"""A server run from PostgreSQL's programs: the machine's own, or those of a wheel.

Like pg_ctl, it sends signals to the server and reads the status line of `postmaster.pid`. It needs
no connection, so it also works while every connection of the server is in use.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import quote

from . import _reaper, _replication
from ._backend import (
    Backend,
    Found,
    Halted,
    ServerError,
    SettingValue,
    Source,
    Spec,
    StopMode,
    as_text,
    free_port,
)
from ._folder import Folder
from ._install import Installation, run_as
from ._password import new_password, verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

START_TIMEOUT = 60.0  # seconds, for a busy machine; a start usually takes 0.5 s
PORT_ATTEMPTS = 10
INITDB = ("--auth=scram-sha-256", "--no-sync", "-U", "postgres", "-E", "UTF8", "--locale=C")
BACKUP = ("pg_basebackup", "-R", "-X", "stream", "-c", "fast", "--no-sync")
STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


def found(installation: Installation) -> Found:
    """Return the provider that starts servers of this installation."""

    def open_local(spec: Spec, halt: Event) -> LocalServer:
        return LocalServer(installation, spec).initialize(halt)

    return Found(installation.source, str(installation), open_local)


class LocalServer:
    """A backend (see `_backend.Backend`) with processes and a folder of its own."""

    def __init__(self, installation: Installation, spec: Spec, password: str | None = None) -> None:
        self._who = run_as()
        self._installation = installation.for_user(self._who)
        self._spec = spec
        self._password = password or new_password()
        self._folder = Folder(self._who)
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._port = 0

    def initialize(self, halt: Event) -> LocalServer:
        """Create a data folder and start the server; on failure, remove everything."""
        # Before PostgreSQL 14 initdb reads 99 characters of this file; a verifier has 130.
        old = self._installation.version < (14, 0)
        given = self._password if old else verifier(self._password)
        try:
            with self._folder.file_for_server("password", given) as file:
                return self._fill(halt, "initdb", *INITDB, f"--pwfile={file}")
        except BaseException:
            self.close()  # again, where it was started: that does nothing
            raise

    def _fill(self, halt: Event, program: str, *arguments: str, **variables: str) -> LocalServer:
        """Create the data folder with `program` and start; on failure, remove everything."""
        try:
            self._run(halt, program, *self._into(), *arguments, **variables)
            self.start(halt)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def source(self) -> Source:
        return self._installation.source

    @property
    def description(self) -> str:
        return f"{self._installation}, port {self._port}"

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def socket_dsn(self) -> str | None:
        if (folder := self._folder.sockets) is None:
            return None
        host = f"host={quote(str(folder), '')}&port={self._port}"
        return f"postgresql://postgres:{self._password}@/postgres?{host}"

    @property
    def state(self) -> str:
        if self._running() is None:
            return "stopped"
        return "paused" if self._paused else "running"

    def start(self, halt: Event) -> None:
        if process := self._running():
            raise ServerError(f"the server is running already (process {process.pid})")
        if self._port:
            self._start(halt)
        else:
            self._start_on_a_free_port(halt)

    def stop(self, mode: StopMode, timeout: float, halt: Event) -> None:
        if process := self._running():
            _reaper.send([process.pid], STOP_SIGNALS[mode])
            self.resume(halt)  # a paused process would not see the signal
            self._wait(halt, timeout, f"stop ({mode})", lambda: process.poll() is not None)

    def kill(self, halt: Event) -> None:
        if process := self._running():
            _reaper.kill_all([process.pid])
            process.wait()
        self._paused = False

    def pause(self, halt: Event) -> None:
        _reaper.freeze(self._required("pause").pid)
        self._paused = True

    def resume(self, halt: Event) -> None:
        if self._paused:
            self._paused = False
            _reaper.send(_reaper.family([self._required("resume").pid]), signal.SIGCONT)

    def promote(self, timeout: float, halt: Event) -> None:
        self._require_not_paused("be promoted")
        self._require_standby("can be promoted")
        limit = str(math.ceil(timeout))
        self._run(halt, "pg_ctl", *self._into(), "promote", "-w", "-t", limit)

    def standby(self, settings: Mapping[str, SettingValue], halt: Event) -> LocalServer:
        self._require_not_paused("be copied")
        replica = LocalServer(self._installation, self._spec.changed(settings), self._password)
        return replica._fill(halt, *BACKUP, *self._to_copy(), PGPASSWORD=self._password)

    def follow(self, primary: Backend, timeout: float, halt: Event) -> None:
        if not isinstance(primary, LocalServer) or not self._is_related(primary):
            raise ServerError("a server can follow only another one of the same cluster")
        primary._require_not_paused("be followed")
        if self.state == "running" and self._is_standby():
            _replication.follow(self.dsn, primary.dsn)
        else:
            self.kill(halt)
            self._folder.empty_data()
            password = {"PGPASSWORD": self._password}
            self._run(halt, BACKUP[0], *self._into(), *BACKUP[1:], *primary._to_copy(), **password)
            self.start(halt)
        port = primary._port
        self._wait(
            halt, timeout, "stream", lambda: _replication.streams_from(self.dsn, primary.dsn, port)
        )

    def pause_replay(self, timeout: float, halt: Event) -> None:
        self._require_not_paused("pause its replay")
        self._require_standby("replays")
        _replication.pause(self.dsn)
        self._wait(halt, timeout, "pause its replay", lambda: _replication.is_paused(self.dsn))

    def resume_replay(self, halt: Event) -> None:
        self._require_not_paused("resume its replay")
        self._require_standby("replays")
        _replication.resume(self.dsn)

    def _to_copy(self) -> tuple[str, str]:
        """Return the option of pg_basebackup that names this server, without its password."""
        # Every user can read a process's arguments; its environment is private.
        return "-d", self.dsn.replace(f":{self._password}@", "@")

    def _into(self) -> tuple[str, str]:
        return "-D", str(self._folder.data)

    def _is_related(self, other: LocalServer) -> bool:
        """Whether one of two servers was copied from the other, or both from a third one."""
        return other is not self and other._password == self._password

    def _is_standby(self) -> bool:
        return (self._folder.data / "standby.signal").exists()

    def _require_standby(self, what: str) -> None:
        if not self._is_standby():
            raise ServerError(f"this server is not a standby: only a standby {what}")

    def close(self) -> None:
        try:
            self._force_stop()
        finally:
            self._folder.close()

    def _force_stop(self) -> None:
        for mode in ("fast", "immediate"):
            with contextlib.suppress(ServerError):  # the server did not stop in time
                self.stop(mode, 5.0, Event())
        self.kill(Event())

    def _running(self) -> subprocess.Popen[bytes] | None:
        process = self._process
        return process if process is not None and process.poll() is None else None

    def _required(self, what: str) -> subprocess.Popen[bytes]:
        if (process := self._running()) is None:
            raise ServerError(f"a stopped server cannot {what}: start() it first")
        return process

    def _require_not_paused(self, what: str) -> None:
        self._required(what)
        if self._paused:
            raise ServerError(f"a paused server cannot {what}: resume() it first")

    def _start_on_a_free_port(self, halt: Event) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._port = free_port()
            try:
                self._start(halt)
            except PortTaken:
                if attempt == PORT_ATTEMPTS:
                    raise
            else:
                break

    def _start(self, halt: Event) -> None:
        self._folder.configuration.write_text(self._configuration())
        self._folder.configuration.chmod(0o644)
        logged = self._folder.log.stat().st_size
        self._paused = False
        config_file = f"config_file={self._folder.configuration}"
        process = self._popen("postgres", *self._into(), "-c", config_file)
        self._process = process
        try:
            self._wait(
                halt,
                START_TIMEOUT,
                "start",
                lambda: process.poll() is not None or self._status() in ("ready", "standby"),
            )
        except BaseException:
            self.kill(halt)
            raise
        if process.poll() is not None:
            error = ServerError
            if "could not create any TCP/IP sockets" in self._folder.log.read_text()[logged:]:
                error = PortTaken
            raise error(f"the server did not start on port {self._port}:\n{self._folder.tail()}")

    def _configuration(self) -> str:
        settings: dict[str, SettingValue] = {
            "dynamic_shared_memory_type": "mmap",  # in the data folder: a kill leaves no segment
            **self._spec.all_settings(),
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": str(self._folder.sockets or ""),
        }
        lines = [f"{name} = '{_quoted(as_text(value))}'\n" for name, value in settings.items()]
        return "".join([f"include '{self._folder.data}/postgresql.conf'\n", *lines])

    def _status(self) -> str | None:
        """The running server's status in postmaster.pid; None: there is none."""
        try:
            lines = (self._folder.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        # The file of a killed server still says "ready", with the old process number.
        mine = self._process is not None and lines[:1] == [str(self._process.pid)]
        return lines[7].strip() if mine and len(lines) > 7 else None

    def _run(self, halt: Event, program: str, *arguments: str, **variables: str) -> None:
        """Run one of PostgreSQL's programs to its end."""
        process = self._popen(program, *arguments, **variables)
        try:
            self._wait(halt, START_TIMEOUT, program, lambda: process.poll() is not None)
        finally:
            if process.poll() is None:
                _reaper.end([process.pid])
                process.wait()
        if process.returncode != 0:
            raise ServerError(
                f"{program} failed with status {process.returncode}:\n{self._folder.tail()}"
            )

    def _popen(self, program: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = {key: word for key, word in os.environ.items() if not key.startswith("PG")}
        with self._folder.log.open("ab") as log:
            return subprocess.Popen(
                [str(self._installation.programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder.path,
                env=environment | {"LC_ALL": "C", "TZ": "UTC"} | variables,
                process_group=0,  # so that the terminal's Ctrl-C does not reach it
                **self._who,
            )

    def _wait(self, halt: Event, timeout: float, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if halt.wait(0.01):
                raise Halted
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server did not {what} within {timeout:g} s:\n{self._folder.tail()}"
                )


class PortTaken(ServerError):
    """Another process listens on the port chosen for the server."""


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
