"""What is asked of a server, and of the client's side of one connection to it.

Nothing is judged here: that is `_server_checks.py`, which asks nothing.
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
from asyncpool.cli._pooler import Pooler, look_behind
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
# Where others' sessions may not be looked into, the type of their backends is null.
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
TLS = "SELECT version FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"
CLOCK = "SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The pool that somebody means to have."""

    max_size: int
    workers: int

    @property
    def connections(self) -> int:
        """Of all of them."""
        return self.max_size * self.workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found; durations in seconds."""

    place: str
    hosts: int
    """That the connection string names."""
    way: Literal["unix", "loopback", "network"]
    options: Mapping[str, str]
    """libpq's, of a connection that the pool has opened; without passwords."""
    given: frozenset[str]
    """The names of those that are in the connection string."""
    tls: bool
    tls_version: str | None
    """As the server says; None behind a pooler, where it knows only the pooler's."""
    server: int
    """Its version, as 160004."""
    standby: bool
    settings: Mapping[str, float | str]
    user: str
    superuser: bool
    uses_reserved: bool
    """Whether the role may have `reserved_connections`."""
    role_limit: int
    """-1: none; so is the next."""
    database_limit: int
    in_use: int
    """Connections, without this one; so are the next two."""
    in_use_by_role: int
    in_use_in_database: int
    round_trip: float
    """The median of some."""
    clock: float
    """How far the server's is ahead of ours."""
    pooler: Pooler | None

    def number(self, setting: str) -> float:
        """A setting of the server's; 0 where it has none of that name."""
        return float(self.settings.get(setting, 0))

    def seconds(self, option: str) -> int:
        """An option of libpq's that is a whole number; 0 where it leaves it to the system."""
        value = self.options.get(option, "")
        return int(value) if value.lstrip("-").isdecimal() else 0


async def gather(
    dsn: str,
    pool: AsyncConnectionPool[Connection[Any]],
    conn: Connection[Any],
    *,
    hosts: int,
) -> Facts:
    """Ask for all of it over one connection, and one more where there is a pooler.

    Raises:
        psycopg.Error: the server does not tell, or does not answer any more.
    """
    round_trip = await _round_trip(conn)
    user, superuser, role_limit, database_limit, standby = await _row(conn, LIMITS)
    in_use, by_role, in_database = await _row(conn, USAGE)
    server = conn.info.server_version
    uses_reserved = superuser
    if server >= 160000:
        (uses_reserved,) = await _row(conn, RESERVED)
    clock = await _clock(conn)
    settings = await _settings(conn)
    tls_version = await _row(conn, TLS)
    pooler = await look_behind(dsn, pool, conn)
    options = {
        each.keyword.decode(): each.val.decode()
        for each in conn.pgconn.info
        if each.val is not None and b"password" not in each.keyword
    }
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    # psycopg asks each host for something else where a standby is preferred.
    if wanted := given.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS"):
        options["target_session_attrs"] = str(wanted)
    return Facts(
        place=place_of(conn),
        hosts=hosts,
        way=_way(conn),
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
    )


def version(number: int) -> str:
    """PostgreSQL's or libpq's, as people write it."""
    return f"{number // 10000}.{number % 10000}"


def libpq() -> int:
    """Its version, as 180000."""
    return pq.version()


async def _row(conn: Connection[Any], query: str) -> tuple[Any, ...]:
    cursor = conn.cursor(row_factory=tuple_row)
    await cursor.execute(query.encode(), prepare=False)
    return await cursor.fetchone() or ()


async def _round_trip(conn: Connection[Any]) -> float:
    taken = []
    for _ in range(ROUND_TRIPS + 1):
        began = time.perf_counter()
        await conn.execute("SELECT 1", prepare=False)
        taken.append(time.perf_counter() - began)
    return median(taken[1:])  # the first finds nothing warm


async def _clock(conn: Connection[Any]) -> float:
    began = time.time()
    (theirs,) = await _row(conn, CLOCK)
    return float(theirs - (began + time.time()) / 2)


async def _settings(conn: Connection[Any]) -> dict[str, float | str]:
    cursor = await conn.execute(SETTINGS.encode(), prepare=False)
    return {
        name: float(value) * UNITS.get(unit, 1.0) if value.lstrip("-").isdecimal() else value
        for name, value, unit in await cursor.fetchall()
    }


def _way(conn: Connection[Any]) -> Literal["unix", "loopback", "network"]:
    host, address = conn.info.host, conn.info.hostaddr
    if host.startswith(("/", "@")):
        return "unix"
    try:
        local = ipaddress.ip_address(address or host).is_loopback
    except ValueError:
        local = host == "localhost"
    return "loopback" if local else "network"
