"""Connection strings: read, and given the time limits that a pool needs.

libpq by itself waits for a silent network as long as the kernel does: minutes to connect, hours for
an answer. What is said here never takes the place of what the user has said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

CONNECT_TIMEOUT = 10
"""Seconds for each address, where neither conninfo, kwargs nor PGCONNECT_TIMEOUT says another."""

# Unanswered data ends a connection after 15 s, and so does an unanswered keepalive, of which the
# first goes out after 10 s of silence: 25 s at most. libpq applies them to TCP alone.
# Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES
TCP_LIMITS: Mapping[str, int] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


def limits_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """The limits to add to these parameters of a connection.

    Nothing but `connect_timeout` is added where a service is named: its file may say the rest.
    """
    limits: dict[str, Any] = {
        "connect_timeout": os.environ.get("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT)
    }
    if "service" not in given and "PGSERVICE" not in os.environ:
        limits |= TCP_LIMITS
    return {name: value for name, value in limits.items() if given.get(name) is None}


def check_conninfo(conninfo: str) -> dict[str, Any]:
    """The parameters of a libpq connection string.

    Raises:
        ValueError: it is none. libpq's own message is left out, for it quotes what it cannot read,
            and that may be the password.
    """
    if not isinstance(conninfo, str):
        msg = f"conninfo must be a str or a callable that gives one, not {type(conninfo).__name__}"
        raise TypeError(msg)
    try:
        params = dict(conninfo_to_dict(conninfo))
    except psycopg.ProgrammingError:
        params = None
    if params is None or "@" in str(params.get("host", "")):
        # The second is a password whose own @ is not percent-encoded: its end would pass as a host.
        msg = (
            "conninfo is neither a postgresql:// URL, with special characters percent-encoded, nor"
            " key=value pairs that libpq knows"
            " (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING);"
            " it is not shown here, since it may hold a password"
        )
        raise ValueError(msg)
    return params
