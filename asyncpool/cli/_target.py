"""The target of a command: its connection string, checked, and texts without passwords.

libpq and psycopg quote a malformed connection string in their errors. So this module checks the
string first, and refuses one whose misplaced characters would put the password into other parts.
"""

from __future__ import annotations

import os
import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool

FOREIGN = re.compile(r"postgres(?:ql)?(\+\w+)://")
"""URLs of SQLAlchemy, which name a driver."""
NOISE = re.compile(r"(Is the server running|Multiple connection attempts failed)")
PREFIX = re.compile(
    r"(connection failed: |connection is bad: |FATAL: +|- host: .*?, hostaddr: \S+: "
    r'|connection to server (at|on socket) "[^"]*"( \([^)]*\))?(, port \d+)? failed: )+'
)


class BadDSN(ValueError):
    """The connection string is malformed; the message is for the user and quotes nothing of it."""


def read(dsn: str | None) -> str:
    """Check a connection string and return it; None or "": libpq's environment variables.

    Raises:
        BadDSN: the string is malformed, or a character in it makes a part of the password look
            like a host, a port or a database.
    """
    dsn = dsn or ""
    if found := FOREIGN.match(dsn):
        msg = f"the DSN names a driver, as SQLAlchemy's do: leave out the {found[1]!r}"
        raise BadDSN(msg)
    try:
        AsyncConnectionPool(dsn, open=False)
    except ValueError as error:
        raise BadDSN(
            re.sub(r"conninfo(, kwargs| or kwargs)?", "the DSN", str(error), count=1)
        ) from None
    params = conninfo_to_dict(dsn)
    if "://" in dsn and "@" in str(params.get("dbname", "")):
        msg = (
            "the DSN has an @ in the database's name: percent-encode special characters in the"
            " password; it is not shown here, since it may hold one"
        )
        raise BadDSN(msg)
    return dsn


def hosts(dsn: str) -> list[str]:
    """Return a connection string for each host in `dsn`, in their order."""
    params = conninfo_to_dict(dsn)

    def listed(name: str) -> list[str]:
        value = params.get(name) or os.environ.get(f"PG{name.upper()}") or ""
        return str(value).split(",")

    parts = {name: listed(name) for name in ("host", "hostaddr", "port")}
    count = max(len(parts["host"]), len(parts["hostaddr"]))
    if count == 1:
        return [dsn]
    return [
        make_conninfo(
            dsn,
            **{
                name: values[number if len(values) > 1 else 0]
                for name, values in parts.items()
                if len(values) in (1, count) and values != [""]
            },
        )
        for number in range(count)
    ]


def place(dsn: str) -> str:
    """Return the address in a connection string of one host, as text for people."""
    params = conninfo_to_dict(dsn)
    if service := params.get("service") or os.environ.get("PGSERVICE"):
        return f"service {service}"
    host = params.get("host") or params.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    port = params.get("port") or os.environ.get("PGPORT") or 5432
    return f"{host}:{port}"


def place_of(conn: psycopg.AsyncConnection[Any]) -> str:
    """Return the address of a connection, as text for people."""
    info = conn.info
    return f"{info.host or info.hostaddr}:{info.port}/{info.dbname}"


def brief(error: BaseException) -> str:
    """Join an error's lines into one, without addresses, known prefixes and repetitions."""
    lines = (PREFIX.sub("", line.strip(), count=1) for line in str(error).splitlines())
    said = dict.fromkeys(line for line in lines if line and not NOISE.match(line))
    return "; ".join(said) or type(error).__name__
