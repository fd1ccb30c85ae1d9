"""A server given by its DSN, which we can connect to but not control."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import psycopg

from asyncpool import AsyncConnectionPool

from ._backend import Backend, ServerUnavailable, Source, Spec, StopMode, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event

    from ._backend import SettingValue

REASON = "asyncpool did not start it, ASYNCPOOL_TEST_DSN names it"


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

    def standby(self, settings: Mapping[str, SettingValue], halt: Event) -> NoReturn:
        refuse(self.source, "standby()", REASON)

    def follow(self, primary: Backend, timeout: float, halt: Event) -> NoReturn:
        refuse(self.source, "follow()", REASON)

    def pause_replay(self, timeout: float, halt: Event) -> NoReturn:
        refuse(self.source, "pause_replay()", REASON)

    def resume_replay(self, halt: Event) -> NoReturn:
        refuse(self.source, "resume_replay()", REASON)

    def close(self) -> None:
        pass


def open_external(dsn: str, spec: Spec) -> Backend:
    """Connect once, to check that the server answers and to read its version.

    Raises:
        ServerUnsupported: settings were given.
        ServerUnavailable: the DSN is malformed, or the server does not answer.
    """
    if spec.settings or spec.max_connections is not None:
        refuse("dsn", "choosing settings or max_connections", REASON)
    try:
        # It checks the DSN. psycopg's own error would quote a malformed one, with its password.
        AsyncConnectionPool(dsn, open=False)
        with psycopg.connect(dsn, connect_timeout=10) as conn:
            version = conn.info.parameter_status("server_version")
            where = f"{conn.info.host}:{conn.info.port}/{conn.info.dbname}"
    except (psycopg.Error, ValueError) as error:
        raise ServerUnavailable(
            f"the server in ASYNCPOOL_TEST_DSN does not answer ({str(error).strip()}); "
            "start it, or unset the variable"
        ) from error
    return ExternalServer(dsn, f"PostgreSQL {version} at {where}")
