"""The time limits of a connection that a pool needs.

libpq by itself waits for a silent network as long as the kernel does: minutes to connect, hours for
an answer. What is said here never takes the place of what the user has said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from psycopg import pq
from psycopg.conninfo import make_conninfo

CONNECT_TIMEOUT = 10
"""Seconds for each address, where neither the user nor PGCONNECT_TIMEOUT says another."""

# A connection ends after 15 s of unanswered data, and also after 15 s of silence, of which the last
# five are an unanswered keepalive's. Where the system has no TCP_USER_TIMEOUT it is up to the
# keepalives alone, which take 25 s. libpq applies all of them to TCP alone.
# Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES
KEEPALIVES: Mapping[str, int] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
TCP_USER_TIMEOUT = 15_000


def limits_for(*given: Mapping[str, Any]) -> dict[str, Any]:
    """The limits to add to these parameters of a connection, of which the last has precedence.

    None says nothing. What a service file says counts too. Its `connect_timeout` is returned with
    the rest, since psycopg, which keeps that limit itself, does not read the file.
    """
    said = {name: value for each in given for name, value in each.items() if value is not None}
    connect_timeout = os.environ.get("PGCONNECT_TIMEOUT")
    if "service" in said or "PGSERVICE" in os.environ:
        service = _read_service(said.get("service"))
        connect_timeout = service.pop("connect_timeout", connect_timeout)
        said = service | said
    limits: dict[str, Any] = {"connect_timeout": connect_timeout or CONNECT_TIMEOUT, **KEEPALIVES}
    if user_timeout := _user_timeout(said):
        limits["tcp_user_timeout"] = user_timeout
    return {name: value for name, value in limits.items() if name not in said}


def _user_timeout(said: Mapping[str, Any]) -> int:
    """Milliseconds of unanswered data; 0 leaves it to the system, as the keepalives are.

    On Linux it ends unanswered keepalives too, whatever their count: if they are the user's own, it
    has to be as long as they last.
    Source: https://man7.org/linux/man-pages/man7/tcp.7.html, TCP_USER_TIMEOUT
    """
    if not KEEPALIVES.keys() & said:
        return TCP_USER_TIMEOUT
    try:
        idle, interval, count = (int(said.get(name, ours)) for name, ours in KEEPALIVES.items())
    except (TypeError, ValueError):
        return 0  # libpq is going to refuse it
    return (idle + interval * count) * 1000 if idle > 0 and interval > 0 and count > 0 else 0


def _read_service(name: str | None) -> dict[str, str]:
    """The limits in a service file, as libpq itself reads it; none where it cannot."""
    # It goes as far as to see that there is no such sslmode, and connects to nothing.
    conn = pq.PGconn.connect_start(make_conninfo("", service=name, sslmode="none").encode())
    wanted = {"connect_timeout", "tcp_user_timeout", *KEEPALIVES}
    try:
        options = {each.keyword.decode(): each.val for each in conn.info}
    finally:
        conn.finish()
    return {name: value.decode() for name, value in options.items() if value and name in wanted}
