"""The notices of `asyncpool.Connection`, some of which announce an end of session or server."""

from __future__ import annotations

from typing import Any
from weakref import ref

import psycopg
from psycopg import errors
from psycopg.pq import DiagnosticField
from psycopg.pq.abc import PGresult

SHUTDOWN_CODES = {b"57P01", b"57P02"}
"""SQLSTATE codes of a server's shutdown and of its crash."""


def on_notice(conn: ref[Any], notice: PGresult) -> None:
    """Pass a notice to its handlers, and report one that announces an end of session or server."""
    psycopg.AsyncConnection._notice_handler(conn, notice)
    # Without a query under way libpq passes the server's last message on as a notice.
    last = notice.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC")
    alive = conn()
    # An immediate shutdown and a crash are announced by a WARNING.
    if (
        alive is not None
        and alive._transport is not None
        and (last or notice.error_field(DiagnosticField.SQLSTATE) in SHUTDOWN_CODES)
    ):
        encoding = alive.info.encoding
        info: dict[int, bytes | None] = {
            field: notice.error_field(field) for field in DiagnosticField
        }
        try:
            kind = errors.lookup((info[DiagnosticField.SQLSTATE] or b"").decode())
        except KeyError:
            kind = psycopg.OperationalError
        error = kind(notice.get_error_message(encoding), info=info, encoding=encoding)
        if last:
            alive._transport.report_session_end(error)
        else:
            alive._transport.report_error(error)
