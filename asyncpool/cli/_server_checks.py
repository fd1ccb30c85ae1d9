"""Looks at what a connection is and where it leads: each a judgement of facts, and no I/O."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import capabilities, pq

from asyncpool.cli._facts import Asked, Facts, libpq, version
from asyncpool.cli._findings import Finding, Level, span

FAR = 0.02
"""Seconds of a round trip from which the number of statements matters more than their work."""
CLOCK_NOTE, CLOCK_WARNING = 1.0, 60.0
"""Seconds between the clocks."""
OLD_TLS = {"TLSv1", "TLSv1.1"}


def server(facts: Facts, _: Asked) -> Iterator[Finding]:
    """Which one, and is it old?"""
    found = f"PostgreSQL {version(facts.server)}"
    numbers = {"version": facts.server}
    if facts.server >= 140000:
        yield Finding("server", "ok", found, facts=numbers)
    else:
        yield Finding(
            "server",
            "note",
            f"{found}: before 14 it does not report whether it is a standby",
            "pool.health() has no role there; a failover shows by its errors alone",
            numbers,
        )


def role(facts: Facts, _: Asked) -> Iterator[Finding]:
    """Primary or standby, and is that what was asked for?"""
    wanted = facts.options.get("target_session_attrs", "any")
    is_now = "standby" if facts.standby else "primary"
    numbers = {"role": is_now, "target_session_attrs": wanted}
    level: Level = "ok"
    advice = ""
    found = f"a {is_now}, with target_session_attrs={wanted}"
    if facts.standby and wanted == "any":
        level = "warning"
        found += ": whatever writes fails with 25006"
        advice = "name the primary too, with target_session_attrs=read-write (host=a,b)"
    elif not facts.standby and wanted == "prefer-standby":
        level = "note"
        found += ": no standby was to be reached"
        advice = "see whether one runs; the primary does its work meanwhile"
    elif not facts.standby and facts.settings.get("default_transaction_read_only") == "on":
        level = "warning"
        found = "a primary, with default_transaction_read_only=on: whatever writes fails with 25006"
        advice = f"look where it is set: ALTER ROLE {facts.user}, the database, the server"
    elif facts.hosts > 1 and wanted == "any":
        level = "note"
        found += f": the first of {facts.hosts} hosts to be reached, also after a failover"
        advice = "if it is to be the primary: target_session_attrs=read-write"
    yield Finding("role", level, found, advice, numbers)


def round_trip(facts: Facts, _: Asked) -> Iterator[Finding]:
    """How far is it?"""
    took = f"a round trip takes {span(facts.round_trip)} (the median)"
    numbers = {"seconds": facts.round_trip}
    if facts.round_trip < FAR:
        yield Finding("round_trip", "ok", took, facts=numbers)
        return
    yield Finding(
        "round_trip",
        "note",
        f"{took}; a transaction of one statement takes three",
        "use one-shots (pool.execute, pool.fetchall) and pool.batch, which take one",
        numbers,
    )


def clock(facts: Facts, _: Asked) -> Iterator[Finding]:
    """Do client and server agree on the time?"""
    off = abs(facts.clock)
    numbers = {"seconds": facts.clock, "uncertainty": facts.round_trip / 2}
    if off < CLOCK_NOTE:
        most = span(max(0.001, off + facts.round_trip / 2))
        yield Finding("clock", "ok", f"the clocks differ by less than {most}", facts=numbers)
        return
    yield Finding(
        "clock",
        "warning" if off >= CLOCK_WARNING else "note",
        f"the server's clock is {span(off)} {'ahead' if facts.clock > 0 else 'behind'}",
        "synchronise both: logs do not line up, and tokens may expire early or not be valid yet",
        numbers,
    )


def tls(facts: Facts, _: Asked) -> Iterator[Finding]:
    """Is it encrypted, and do we know by whom?"""
    mode = facts.options.get("sslmode", "prefer")
    numbers = {"tls": facts.tls, "version": facts.tls_version, "sslmode": mode, "way": facts.way}
    if facts.way == "unix":
        yield Finding("tls", "ok", "a Unix socket, which needs none", facts=numbers)
    elif not facts.tls and facts.way == "loopback":
        yield Finding("tls", "ok", "none, and nothing leaves this machine", facts=numbers)
    elif not facts.tls:
        yield Finding(
            "tls",
            "warning",
            f"none (sslmode={mode}): the network sees all that is said",
            "switch it on at the server, and ask for it: sslmode=verify-full with sslrootcert",
            numbers,
        )
    elif facts.tls_version in OLD_TLS:
        yield Finding(
            "tls",
            "warning",
            f"{facts.tls_version}, which is broken",
            "set ssl_min_protocol_version to TLSv1.2 or later at the server",
            numbers,
        )
    elif mode.startswith("verify") or facts.way == "loopback":
        found = f"{facts.tls_version or 'on'}, with sslmode={mode}"
        yield Finding("tls", "ok", found, facts=numbers)
    else:
        yield Finding(
            "tls",
            "note",
            f"{facts.tls_version or 'on'}, with sslmode={mode}: it may be anybody's certificate",
            "sslmode=verify-full with sslrootcert makes sure that it is the server's",
            numbers,
        )


def pooler(facts: Facts, _: Asked) -> Iterator[Finding]:
    """Is there one between, and what is left of a session?"""
    between = facts.pooler
    if between is None:
        yield Finding("pooler", "ok", "none between: the server itself answers")
        return
    numbers = {"version": between.version, "mode": between.mode}
    if between.mode == "session":
        found = f"{between.name} between, in session mode: a session is one's own"
        yield Finding("pooler", "ok", found, facts=numbers)
    elif between.mode == "transaction":
        yield Finding(
            "pooler",
            "note",
            f"{between.name} between, in transaction mode: a session is one's own as long as a"
            " transaction lasts",
            'leave the pool\'s reset at its default; SET, LISTEN, advisory locks and "WITH HOLD"'
            " do not last",
            numbers,
        )
    elif between.mode == "statement":
        yield Finding(
            "pooler",
            "problem",
            f"{between.name} between, in statement mode: there are no transactions",
            "set pool_mode to transaction or session: pool.connection() begins one",
            numbers,
        )
    else:
        yield Finding(
            "pooler",
            "note",
            f"{between.name} between, and its mode was not to be seen: another client was given no"
            " session, or not in time",
            "ask who runs it; in transaction mode leave the pool's reset at its default",
            numbers,
        )


def prepared_statements(facts: Facts, _: Asked) -> Iterator[Finding]:
    """Do they work, from one transaction to the next?"""
    between = facts.pooler
    off = 'kwargs={"prepare_threshold": None}'
    numbers = {
        "kept": True if between is None or between.mode == "session" else between.prepared,
        "max_prepared_statements": between and between.number("max_prepared_statements"),
    }
    check = "prepared_statements"
    if between is None or between.mode == "session":
        found = "they last: psycopg prepares what it runs for the sixth time"
        yield Finding(check, "ok", found, facts=numbers)
    elif between.prepared is None:
        found = "behind a pooler that shares sessions they may vanish, which was not to be seen"
        yield Finding(check, "warning", found, f"unless you know better: {off}", numbers)
    elif not between.prepared:
        yield Finding(
            check,
            "warning",
            "they vanish with the session: what psycopg prepares fails with 26000 or 42P05",
            f"{off}, or PgBouncer 1.22 or later with max_prepared_statements above 0",
            numbers,
        )
    elif not capabilities.has_send_close_prepared():
        yield Finding(
            check,
            "warning",
            f"the pooler keeps them, but libpq {version(libpq())} cannot tell it to forget one",
            f"libpq 17 or later, or {off}",
            numbers,
        )
    else:
        found = "they last: the pooler knows them and takes them along"
        yield Finding(check, "ok", found, facts=numbers)


def client(facts: Facts, _: Asked) -> Iterator[Finding]:
    """Our own side: psycopg, libpq."""
    numbers = {"psycopg": psycopg.__version__, "libpq": libpq(), "implementation": pq.__impl__}
    found = f"psycopg {psycopg.__version__} ({pq.__impl__}), libpq {version(libpq())}"
    if pq.__impl__ == "python":
        advice = "pip install 'psycopg[binary]', or 'psycopg[c]': the pure Python one is slow"
        yield Finding("client", "note", found, advice, numbers)
    elif not capabilities.has_pipeline():
        found += ", which has no pipeline mode: each one-shot borrows a connection"
        yield Finding("client", "note", found, "libpq 14 or later", numbers)
    else:
        yield Finding("client", "ok", found, facts=numbers)
