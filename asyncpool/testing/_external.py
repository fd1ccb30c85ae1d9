"""A server that somebody else runs, given by a DSN: it can be used, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import psycopg

from asyncpool import AsyncConnectionPool

from ._backend import Backend, ServerUnavailable, Source, Spec, StopMode, refuse

if TYPE_CHECKING:
    from threading import Event

REASON = "it is not ours, it was given by ASYNCPOOL_TEST_DSN"


class ExternalServer:
    """A backend (see `_backend.Backend`) that refuses every operation."""

    source: Source = "dsn"
    socket_dsn: str | None = None
    state = "running"

    def __init__(self, dsn: str, description: str) -> None:
        self.dsn = dsn
        self.description = description

    def start(self, halt: Event) -> NoReturn:
        refuse(self.source, "start()", REASON)

    def stop(self, mode: StopMode, timeout: float, halt: Event) -> NoReturn:
        refuse(self.source, "stop()", REASON)

    def kill(self, halt: Event) -> NoReturn:
        refuse(self.source, "kill()", REASON)

    def pause(self, halt: Event) -> NoReturn:
        refuse(self.source, "pause()", REASON)

    def resume(self, halt: Event) -> NoReturn:
        refuse(self.source, "resume()", REASON)

    def promote(self, timeout: float, halt: Event) -> NoReturn:
        refuse(self.source, "promote()", REASON)

    def standby(self, halt: Event) -> NoReturn:
        refuse(self.source, "standby()", REASON)

    def close(self) -> None:
        pass


def open_external(dsn: str, spec: Spec) -> Backend:
    """Connect once, to see that it answers and to say what it is."""
    if spec.settings or spec.max_connections is not None:
        refuse("dsn", "choosing settings or max_connections", REASON)
    try:
        AsyncConnectionPool(dsn, open=False)  # psycopg would quote a malformed one
        with psycopg.connect(dsn, connect_timeout=10) as conn:
            version = conn.info.parameter_status("server_version")
            where = f"{conn.info.host}:{conn.info.port}/{conn.info.dbname}"
    except (psycopg.Error, ValueError) as error:
        raise ServerUnavailable(
            f"the server in ASYNCPOOL_TEST_DSN does not answer ({str(error).strip()}); "
            "start it, or unset the variable"
        ) from error
    return ExternalServer(dsn, f"PostgreSQL {version} at {where}")
