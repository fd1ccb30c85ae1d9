"""Checks of the server, the role and the connection; they judge facts and do no I/O."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import capabilities, pq

from asyncpool.cli._facts import Facts, Plan, libpq, version
from asyncpool.cli._findings import Finding, Level, span

FAR = 0.02
"""Seconds of a round trip above which the number of round trips dominates the cost."""
CLOCK_NOTE, CLOCK_WARNING = 1.0, 60.0
"""Seconds of difference between the clocks for each level."""
OLD_TLS = {"TLSv1", "TLSv1.1"}


def server(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check the server's version."""
    found = f"PostgreSQL {version(facts.server)}"
    numbers = {"version": facts.server}
    if facts.server >= 140000:
        yield Finding("server", "ok", found, facts=numbers)
    else:
        yield Finding(
            "server",
            "note",
            f"{found}: versions before 14 do not report whether they are a standby",
            "pool.health() shows no role, and only errors show a failover",
            numbers,
        )


def role(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check that the server's role is the one that target_session_attrs asks for."""
    wanted = facts.options.get("target_session_attrs", "any")
    is_now = "standby" if facts.standby else "primary"
    numbers = {"role": is_now, "target_session_attrs": wanted}
    level: Level = "ok"
    advice = ""
    found = f"a {is_now}, with target_session_attrs={wanted}"
    if facts.standby and wanted == "any":
        level = "warning"
        found += ": every write fails with 25006"
        advice = "name the primary too, with target_session_attrs=read-write (host=a,b)"
    elif not facts.standby and wanted == "prefer-standby":
        level = "note"
        found += ": no standby could be reached"
        advice = "check that a standby runs; meanwhile the primary serves its queries"
    elif not facts.standby and facts.settings.get("default_transaction_read_only") == "on":
        level = "warning"
        found = "a primary, with default_transaction_read_only=on: every write fails with 25006"
        advice = f"find where it is set: the role {facts.user}, the database or the server"
    elif facts.hosts > 1 and wanted == "any":
        level = "note"
        found += f": the first reachable one of {facts.hosts} hosts, also after a failover"
        advice = "if you need the primary, set target_session_attrs=read-write"
    yield Finding("role", level, found, advice, numbers)


def round_trip(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check the duration of a round trip."""
    took = f"a round trip takes {span(facts.round_trip)} (median)"
    numbers = {"seconds": facts.round_trip}
    if facts.round_trip < FAR:
        yield Finding("round_trip", "ok", took, facts=numbers)
        return
    yield Finding(
        "round_trip",
        "note",
        f"{took}; a transaction of one statement takes three round trips",
        "use one-shots (pool.execute, pool.fetchall) and pool.batch: one round trip each",
        numbers,
    )


def clock(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check that the clocks of client and server agree."""
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
        "synchronise them: log times do not match, and tokens may expire early or not be valid yet",
        numbers,
    )


def tls(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check that the connection is encrypted and the server's certificate verified."""
    mode = facts.options.get("sslmode", "prefer")
    numbers = {
        "tls": facts.tls,
        "version": facts.tls_version,
        "sslmode": mode,
        "way": facts.route,
    }
    if facts.route == "unix":
        yield Finding("tls", "ok", "not needed on a Unix socket", facts=numbers)
    elif not facts.tls and facts.route == "loopback":
        yield Finding("tls", "ok", "none, but the data does not leave this machine", facts=numbers)
    elif not facts.tls:
        yield Finding(
            "tls",
            "warning",
            f"none (sslmode={mode}): the network can read all data",
            "enable TLS on the server, and use sslmode=verify-full with sslrootcert",
            numbers,
        )
    elif facts.tls_version in OLD_TLS:
        yield Finding(
            "tls",
            "warning",
            f"{facts.tls_version}, which is insecure",
            "set ssl_min_protocol_version to TLSv1.2 or later on the server",
            numbers,
        )
    elif mode.startswith("verify") or facts.route == "loopback":
        found = f"{facts.tls_version or 'on'}, with sslmode={mode}"
        yield Finding("tls", "ok", found, facts=numbers)
    else:
        yield Finding(
            "tls",
            "note",
            f"{facts.tls_version or 'on'}, with sslmode={mode}: the certificate is not verified",
            "use sslmode=verify-full with sslrootcert, which verifies the server's certificate",
            numbers,
        )


def pooler(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check whether a pooler is in between, and what a session keeps."""
    proxy = facts.pooler
    if proxy is None:
        yield Finding("pooler", "ok", "none: the server itself answers")
        return
    numbers = {"version": proxy.version, "mode": proxy.mode}
    if proxy.mode == "session":
        found = f"{proxy.name} in session mode: each client has a session of its own"
        yield Finding("pooler", "ok", found, facts=numbers)
    elif proxy.mode == "transaction":
        yield Finding(
            "pooler",
            "note",
            f"{proxy.name} in transaction mode: a client has a session of its own only during a"
            " transaction",
            'keep the default of the pool\'s reset; SET, LISTEN, advisory locks and "WITH HOLD"'
            " do not work across transactions",
            numbers,
        )
    elif proxy.mode == "statement":
        yield Finding(
            "pooler",
            "problem",
            f"{proxy.name} in statement mode: there are no transactions",
            "set pool_mode to transaction or session: pool.connection() begins a transaction",
            numbers,
        )
    else:
        yield Finding(
            "pooler",
            "note",
            f"{proxy.name}, whose mode is unknown: a second client got no session, or not in time",
            "ask its administrator; in transaction mode keep the default of the pool's reset",
            numbers,
        )


def prepared_statements(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check that prepared statements persist from one transaction to the next."""
    proxy = facts.pooler
    off = 'kwargs={"prepare_threshold": None}'
    numbers = {
        "kept": True if proxy is None or proxy.mode == "session" else proxy.prepared,
        "max_prepared_statements": proxy and proxy.number("max_prepared_statements"),
    }
    check = "prepared_statements"
    if proxy is None or proxy.mode == "session":
        found = "they persist: psycopg prepares a query when it runs for the sixth time"
        yield Finding(check, "ok", found, facts=numbers)
    elif proxy.prepared is None:
        found = (
            "they may get lost: the pooler shares sessions, and whether it keeps them is unknown"
        )
        advice = f"unless you know that it keeps them: {off}"
        yield Finding(check, "warning", found, advice, numbers)
    elif not proxy.prepared:
        yield Finding(
            check,
            "warning",
            "they stay on one session: psycopg's prepared statements fail with 26000 or 42P05",
            f"{off}, or PgBouncer 1.22 or later with max_prepared_statements above 0",
            numbers,
        )
    elif not capabilities.has_send_close_prepared():
        yield Finding(
            check,
            "warning",
            f"the pooler keeps them, but libpq {version(libpq())} cannot close one",
            f"libpq 17 or later, or {off}",
            numbers,
        )
    else:
        found = "they persist: the pooler prepares them on each session that it uses"
        yield Finding(check, "ok", found, facts=numbers)


def client(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check the client's libraries: psycopg and libpq."""
    numbers = {"psycopg": psycopg.__version__, "libpq": libpq(), "implementation": pq.__impl__}
    found = f"psycopg {psycopg.__version__} ({pq.__impl__}), libpq {version(libpq())}"
    if pq.__impl__ == "python":
        advice = "pip install 'psycopg[binary]', or 'psycopg[c]': pure Python is slow"
        yield Finding("client", "note", found, advice, numbers)
    elif not capabilities.has_pipeline():
        found += ", which has no pipeline mode: each one-shot leases a connection"
        yield Finding("client", "note", found, "libpq 14 or later", numbers)
    else:
        yield Finding("client", "ok", found, facts=numbers)
