"""Time limits that the pool adds to a connection's parameters.

By default libpq waits as long as the kernel does on a silent network: minutes to connect, hours for
an answer. A limit that the user has set is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import pq
from psycopg.conninfo import make_conninfo

CONNECT_TIMEOUT = 10
"""Seconds for each address, unless the user or PGCONNECT_TIMEOUT sets another limit."""

# A connection ends after 15 s of unanswered data, and after 15 s of silence: 10 s idle and 5 s
# without an answer to a keepalive. A system without TCP_USER_TIMEOUT has only the keepalives, which
# take 25 s. libpq applies these limits to TCP only.
# Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES
KEEPALIVES: Mapping[str, int] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
TCP_USER_TIMEOUT = 15_000


def limits_for(*given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits to add to a connection's parameters.

    Args:
        *given: mappings of parameters; a later one has precedence, and a value of None is ignored.

    The limits of a service file count as given. Its `connect_timeout` is returned as well, because
    psycopg enforces that limit itself and does not read the file.
    """
    merged = _merged(given)
    connect_timeout = os.environ.get("PGCONNECT_TIMEOUT")
    if uses_service(merged):
        service = _read_service(merged.get("service"))
        connect_timeout = service.pop("connect_timeout", connect_timeout)
        merged = service | merged
    limits: dict[str, Any] = {"connect_timeout": connect_timeout or CONNECT_TIMEOUT, **KEEPALIVES}
    if user_timeout := _user_timeout(merged):
        limits["tcp_user_timeout"] = user_timeout
    return {name: value for name, value in limits.items() if name not in merged}


def application_name(*given: Mapping[str, Any]) -> str:
    """Return the `application_name` of a connection with these parameters; "" without one."""
    merged = _merged(given)
    name = merged.get("application_name")
    if name is None and uses_service(merged):
        name = _read_service(merged.get("service")).get("application_name")
    if name is None:
        name = os.environ.get("PGAPPNAME")
    return str(name or merged.get("fallback_application_name") or "")


def uses_service(*given: Mapping[str, Any]) -> bool:
    """Whether a service file is read for a connection with these parameters."""
    return any(each.get("service") is not None for each in given) or "PGSERVICE" in os.environ


def _merged(given: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for each in given for name, value in each.items() if value is not None}


def _user_timeout(given: Mapping[str, Any]) -> int:
    """Return the milliseconds that data may stay unanswered; 0 leaves the limit to the system.

    On Linux this limit also ends unanswered keepalives, whatever their count. Where the user sets
    keepalives, it must therefore be as long as these last.
    Source: https://man7.org/linux/man-pages/man7/tcp.7.html, TCP_USER_TIMEOUT
    """
    if not KEEPALIVES.keys() & given:
        return TCP_USER_TIMEOUT
    try:
        idle, interval, count = (int(given.get(name, ours)) for name, ours in KEEPALIVES.items())
    except (TypeError, ValueError):
        return 0  # libpq refuses the value later
    return (idle + interval * count) * 1000 if idle > 0 and interval > 0 and count > 0 else 0


def _read_service(name: str | None) -> dict[str, str]:
    """Return what is wanted of a service file as libpq reads it; nothing where it cannot."""
    # The invalid sslmode stops libpq after it has read the file and before it connects.
    conn = pq.PGconn.connect_start(make_conninfo("", service=name, sslmode="none").encode())
    wanted = {"application_name", "connect_timeout", "tcp_user_timeout", *KEEPALIVES}
    try:
        options = {each.keyword.decode(): each.val for each in conn.info}
    finally:
        conn.finish()
    return {name: value.decode() for name, value in options.items() if value and name in wanted}
