"""A server in a container of testcontainers, whose reaper ends it if this process dies."""

from __future__ import annotations

import importlib
import os
import secrets
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._backend import (
    Absent,
    Found,
    Halted,
    ServerError,
    Source,
    Spec,
    StopMode,
    as_text,
    free_port,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event

    from ._backend import Backend, SettingValue

IMAGE = "postgres:17-alpine"
SOCKET = Path("/var/run/docker.sock")
START_TIMEOUT = 60.0  # seconds, after the image was pulled
NO_NETWORK = "a standby would need a network of containers"
SIGNALS: dict[StopMode, str] = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}


def find_engine() -> Found:
    """Ask whether a Docker engine answers, for at most 2 s.

    testcontainers itself raises without an engine.

    Raises:
        Absent: a package is missing, or no engine answers.
    """
    if find_spec("testcontainers") is None or find_spec("docker") is None:
        raise Absent("pip install testcontainers, and start a Docker engine")
    if "DOCKER_HOST" not in os.environ and not SOCKET.exists():
        raise Absent("no Docker engine here; start one, or set DOCKER_HOST")
    docker = importlib.import_module("docker")
    try:
        client = docker.from_env(timeout=2)
        try:
            client.ping()
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as error:
        raise Absent(f"the Docker engine does not answer ({error}); start it") from error
    return Found("testcontainers", f"a container of {IMAGE}", ContainerServer)


class ContainerServer:
    """A backend (see `_backend.Backend`) that passes operations on to the engine."""

    source: Source = "testcontainers"
    socket_dsn: str | None = None

    def __init__(self, spec: Spec, halt: Event) -> None:
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415

        options = [f"{name}={as_text(value)}" for name, value in spec.all_settings().items()]
        self._container = DockerContainer(IMAGE)
        password = secrets.token_hex(16)
        self._container.with_env("POSTGRES_PASSWORD", password)
        arguments = "--auth=scram-sha-256 --no-sync --locale=C"
        self._container.with_env("POSTGRES_INITDB_ARGS", arguments)
        self._container.with_command(["postgres", *(w for o in options for w in ("-c", o))])
        # A port chosen by Docker would change at a restart.
        self._container.with_bind_ports(5432, free_port())
        self.state = "running"
        try:
            self._container.start()
            host, port = self._container.get_container_host_ip(), self._port()
            self.dsn = f"postgresql://postgres:{password}@{host}:{port}/postgres"
            self.description = f"a container of {IMAGE} at {host}:{port}"
            self._wait(halt)
        except BaseException:
            self.close()
            raise

    def start(self, halt: Event) -> None:
        if self.state != "stopped":
            raise ServerError("the server is running already")
        self._engine().start()
        self.state = "running"
        self._wait(halt)

    def stop(self, mode: StopMode, timeout: float, halt: Event) -> None:
        if self.state == "stopped":
            return
        self.resume(halt)
        self._engine().kill(signal=SIGNALS[mode])
        try:
            self._engine().wait(timeout=timeout)
        except OSError as error:  # the errors of `requests` are subclasses
            raise ServerError(f"the server did not stop ({mode}) within {timeout:g} s") from error
        self.state = "stopped"

    def kill(self, halt: Event) -> None:
        if self.state != "stopped":
            self.resume(halt)
            self._engine().kill()
            self._engine().wait(timeout=30)
            self.state = "stopped"

    def pause(self, halt: Event) -> None:
        if self.state == "stopped":
            raise ServerError("a stopped server cannot pause: start() it first")
        if self.state == "running":
            self._engine().pause()
            self.state = "paused"

    def resume(self, halt: Event) -> None:
        if self.state == "paused":
            self._engine().unpause()
            self.state = "running"

    def promote(self, timeout: float, halt: Event) -> None:
        raise ServerError("this server is not a standby: only a standby can be promoted")

    def standby(self, settings: Mapping[str, SettingValue], halt: Event) -> ContainerServer:
        refuse(self.source, "standby()", NO_NETWORK)

    def follow(self, primary: Backend, timeout: float, halt: Event) -> None:
        refuse(self.source, "follow()", NO_NETWORK)

    def pause_replay(self, timeout: float, halt: Event) -> None:
        refuse(self.source, "pause_replay()", NO_NETWORK)

    def resume_replay(self, halt: Event) -> None:
        refuse(self.source, "resume_replay()", NO_NETWORK)

    def close(self) -> None:
        self._container.stop()

    def _engine(self) -> Any:
        return self._container.get_wrapped_container()

    def _port(self) -> int:
        return int(self._container.get_exposed_port(5432))

    def _wait(self, halt: Event) -> None:
        import psycopg  # noqa: PLC0415 - slow, and not needed to find a provider

        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    logs = self._engine().logs(tail=20).decode(errors="replace")
                    raise ServerError(
                        f"the server did not start within {START_TIMEOUT:g} s:\n{logs}"
                    ) from error
            else:
                return
            if halt.wait(0.1):
                raise Halted
