"""Facts about a server, and about the client's side of one connection to it.

This module does the I/O and judges nothing; the checks judge the facts and do no I/O.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from asyncpool import AsyncConnectionPool, Connection
from asyncpool.cli._pooler import Pooler, find_pooler
from asyncpool.cli._target import place_of

ROUND_TRIPS = 9
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}
SETTINGS = """
SELECT name, setting, unit FROM pg_catalog.pg_settings WHERE name IN (
    'max_connections', 'superuser_reserved_connections', 'reserved_connections',
    'idle_session_timeout', 'idle_in_transaction_session_timeout', 'statement_timeout',
    'transaction_timeout', 'tcp_keepalives_idle', 'tcp_keepalives_interval',
    'tcp_keepalives_count', 'tcp_user_timeout', 'default_transaction_read_only')
"""
# backend_type is null for the sessions of others that the role may not see.
USAGE = """
SELECT count(*), count(*) FILTER (WHERE a.usename = session_user),
       count(*) FILTER (WHERE a.datname = current_database())
FROM pg_catalog.pg_stat_activity a WHERE a.pid <> pg_catalog.pg_backend_pid()
AND coalesce(a.backend_type, CASE WHEN a.usesysid IS NOT NULL THEN 'client backend' END)
    = 'client backend'
"""
LIMITS = """
SELECT session_user::text, r.rolsuper, r.rolconnlimit, d.datconnlimit,
       pg_catalog.pg_is_in_recovery()
FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
WHERE r.rolname = session_user AND d.datname = current_database()
"""
RESERVED = "SELECT pg_catalog.pg_has_role(session_user, 'pg_use_reserved_connections', 'USAGE')"
# The name is what every role may see of a session; the mark of a member is at its end.
FLEETS = """
SELECT split_part(mark, '/', 1), count(DISTINCT split_part(mark, '/', 2)), count(*)
FROM (
    SELECT substring(application_name FROM '(?:^| )fleet=([A-Za-z0-9_-]{1,20}/[^/ ]+)/') AS mark
    FROM pg_catalog.pg_stat_activity
) marks
WHERE mark IS NOT NULL GROUP BY 1 ORDER BY 1
"""
TLS = "SELECT version FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"
CLOCK = "SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The planned pools: one in each worker process."""

    max_size: int
    workers: int

    @property
    def connections(self) -> int:
        """The connections of all pools together, at most."""
        return self.max_size * self.workers


@dataclass(frozen=True, slots=True)
class FleetSeen:
    """A fleet that has marked its sessions; see `asyncpool.Fleet`."""

    name: str
    members: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts; durations are in seconds."""

    place: str
    hosts: int
    """The number of hosts in the connection string."""
    route: Literal["unix", "loopback", "network"]
    options: Mapping[str, str]
    """libpq's options of a connection that the pool opened, without passwords."""
    given: frozenset[str]
    """The names of the options that the connection string gives."""
    tls: bool
    tls_version: str | None
    """The server's TLS version; None behind a pooler, whose own link the server would report."""
    server: int
    """The server's version, such as 160004."""
    standby: bool
    settings: Mapping[str, float | str]
    user: str
    superuser: bool
    uses_reserved: bool
    """Whether the role may use `reserved_connections`."""
    role_limit: int
    """-1: no limit; likewise for the database."""
    database_limit: int
    in_use: int
    """Other connections to the server; the next two fields likewise, by role and database."""
    in_use_by_role: int
    in_use_in_database: int
    round_trip: float
    """The median of several round trips."""
    clock: float
    """The server's clock minus ours."""
    pooler: Pooler | None
    fleets: tuple[FleetSeen, ...] = ()
    """The fleets whose sessions the server has."""

    def number(self, setting: str) -> float:
        """Return a setting of the server; 0: it has none of that name."""
        return float(self.settings.get(setting, 0))

    def seconds(self, option: str) -> int:
        """Return a whole-number option of libpq; 0: the operating system decides."""
        value = self.options.get(option, "")
        return int(value) if value.lstrip("-").isdecimal() else 0


async def gather(
    dsn: str,
    pool: AsyncConnectionPool[Connection[Any]],
    conn: Connection[Any],
    *,
    hosts: int,
) -> Facts:
    """Collect all facts over one connection, and a second one behind a pooler.

    Raises:
        psycopg.Error: the server refused a query, or the connection is lost.
    """
    round_trip = await _round_trip(conn)
    user, superuser, role_limit, database_limit, standby = await _row(conn, LIMITS)
    in_use, by_role, in_database = await _row(conn, USAGE)
    fleets = await _rows(conn, FLEETS)
    server = conn.info.server_version
    uses_reserved = superuser
    if server >= 160000:
        (uses_reserved,) = await _row(conn, RESERVED)
    clock = await _clock(conn)
    settings = await _settings(conn)
    tls_version = await _row(conn, TLS)
    pooler = await find_pooler(dsn, pool, conn)
    options = {
        each.keyword.decode(): each.val.decode()
        for each in conn.pgconn.info
        if each.val is not None and b"password" not in each.keyword
    }
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    # With prefer-standby, psycopg passes other values to libpq for each host.
    if wanted := given.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS"):
        options["target_session_attrs"] = str(wanted)
    return Facts(
        place=place_of(conn),
        hosts=hosts,
        route=_route(conn),
        options=options,
        given=frozenset(given),
        tls=bool(conn.pgconn.ssl_in_use),
        tls_version=tls_version[0] if tls_version and pooler is None else None,
        server=server,
        standby=standby,
        settings=settings,
        user=user,
        superuser=superuser,
        uses_reserved=uses_reserved,
        role_limit=role_limit,
        database_limit=database_limit,
        in_use=in_use,
        in_use_by_role=by_role,
        in_use_in_database=in_database,
        round_trip=round_trip,
        clock=clock,
        pooler=pooler,
        fleets=tuple(FleetSeen(*fleet) for fleet in fleets),
    )


def version(number: int) -> str:
    """Format a version number of PostgreSQL or libpq for people."""
    return f"{number // 10000}.{number % 10000}"


def libpq() -> int:
    """Return libpq's version, such as 180000."""
    return pq.version()


async def _row(conn: Connection[Any], query: str) -> tuple[Any, ...]:
    rows = await _rows(conn, query)
    return rows[0] if rows else ()


async def _rows(conn: Connection[Any], query: str) -> list[tuple[Any, ...]]:
    cursor = conn.cursor(row_factory=tuple_row)
    await cursor.execute(query.encode(), prepare=False)
    return await cursor.fetchall()


async def _round_trip(conn: Connection[Any]) -> float:
    taken = []
    for _ in range(ROUND_TRIPS + 1):
        began = time.perf_counter()
        await conn.execute("SELECT 1", prepare=False)
        taken.append(time.perf_counter() - began)
    return median(taken[1:])  # without the first, which warms caches


async def _clock(conn: Connection[Any]) -> float:
    began = time.time()
    (server_time,) = await _row(conn, CLOCK)
    return float(server_time - (began + time.time()) / 2)


async def _settings(conn: Connection[Any]) -> dict[str, float | str]:
    cursor = await conn.execute(SETTINGS.encode(), prepare=False)
    return {
        name: float(value) * UNITS.get(unit, 1.0) if value.lstrip("-").isdecimal() else value
        for name, value, unit in await cursor.fetchall()
    }


def _route(conn: Connection[Any]) -> Literal["unix", "loopback", "network"]:
    host, address = conn.info.host, conn.info.hostaddr
    if host.startswith(("/", "@")):
        return "unix"
    try:
        local = ipaddress.ip_address(address or host).is_loopback
    except ValueError:
        local = host == "localhost"
    return "loopback" if local else "network"
