"""A standby's replication: which primary it follows, and whether it streams and replays.

Each call has a session of its own as the superuser, for whom the server reserves connections.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, LiteralString

from ._backend import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

CONNECT_TIMEOUT = 5
TIMELINE = """
SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT received_tli FROM pg_stat_wal_receiver)
ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END
"""
STATE_SINCE = 140000
"""The first version that tells a requested pause from one that is in effect."""


def follow(dsn: str, primary: str) -> None:
    """Make a running standby stream from another primary, without a restart.

    Args:
        dsn: the standby.
        primary: the DSN of its new primary.
    """
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415 - slow to import
    from psycopg.sql import SQL, Literal  # noqa: PLC0415

    parts = conninfo_to_dict(primary)
    wanted = ("host", "port", "user", "password")
    found = make_conninfo("", **{name: str(parts[name]) for name in wanted})
    with _session(dsn) as conn:
        conn.execute(SQL("ALTER SYSTEM SET primary_conninfo = {}").format(Literal(found)))
        conn.execute("SELECT pg_reload_conf()")


def streams_from(dsn: str, primary: str, port: int) -> bool:
    """Whether a standby receives the WAL of a server, on that server's timeline.

    One that cannot follow receives what its new primary has of the old timeline, again and again.

    Args:
        dsn: the standby.
        primary: the DSN of the other server; a standby that receives nothing has any timeline.
        port: its port.
    """
    timeline = _value(primary, TIMELINE)
    with _session(dsn) as conn:
        query = "SELECT status, sender_port, received_tli FROM pg_stat_wal_receiver"
        status, sender, received = conn.execute(query).fetchone() or (None, None, None)
    return (status, sender) == ("streaming", port) and timeline in (None, received)


def pause(dsn: str) -> None:
    """Ask a standby to replay no more."""
    _value(dsn, "SELECT pg_wal_replay_pause()")


def resume(dsn: str) -> None:
    """Let a standby replay again."""
    _value(dsn, "SELECT pg_wal_replay_resume()")


def is_paused(dsn: str) -> bool:
    """Whether a standby replays no more."""
    with _session(dsn) as conn:
        if conn.info.server_version < STATE_SINCE:
            return True
    return bool(_value(dsn, "SELECT pg_get_wal_replay_pause_state() = 'paused'"))


def _value(dsn: str, query: LiteralString) -> Any:
    with _session(dsn) as conn:
        row = conn.execute(query).fetchone()
        return row[0] if row else None


@contextmanager
def _session(dsn: str) -> Iterator[psycopg.Connection]:
    import psycopg  # noqa: PLC0415 - slow to import

    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT) as conn:
            yield conn
    except psycopg.Error as error:
        raise ServerError(str(error).strip()) from error
