"""Checks of time limits: of the connection, of the server, and of a pool with its defaults."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

from asyncpool import AsyncConnectionPool
from asyncpool.cli._facts import Facts, Plan
from asyncpool.cli._findings import Finding, many, span

LONG = 120.0
"""Seconds of silence after which a dead connection should be noticed."""
SYSTEM_IDLE = 7200
"""Seconds until the first keepalive if libpq uses the operating system's default."""
DEFAULTS: Mapping[str, float] = {
    name: float(inspect.signature(AsyncConnectionPool).parameters[name].default)
    for name in ("ping_interval", "ping_timeout", "max_idle", "timeout")
}
"""The pool's defaults, since the application's values are unknown."""


def connect_timeout(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check how long an address that does not answer delays a request."""
    seconds, longest = facts.seconds("connect_timeout"), DEFAULTS["timeout"]
    whose = "" if "connect_timeout" in facts.given else " (asyncpool's default)"
    numbers = {"seconds": seconds}
    if seconds <= 0:
        found = "off: psycopg gives up an address that does not answer after 130 s"
        yield Finding("connect_timeout", "warning", found, "connect_timeout=10", numbers)
    elif seconds > longest:
        found = f"{span(seconds)} for each address; a request waits for {span(longest)} at most"
        yield Finding("connect_timeout", "note", found, "connect_timeout=10", numbers)
    else:
        yield Finding(
            "connect_timeout", "ok", f"{span(seconds)} for each address{whose}", "", numbers
        )


def keepalives(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check when keepalives end a connection whose network is silent."""
    names = ("keepalives_idle", "keepalives_interval", "keepalives_count")
    idle, interval, count = map(facts.seconds, names)
    unanswered = facts.seconds("tcp_user_timeout") / 1000
    numbers = {"idle": idle, "interval": interval, "count": count, "tcp_user_timeout": unanswered}
    if facts.route == "unix":
        yield Finding("keepalives", "ok", "not needed on a Unix socket")
        return
    if facts.options.get("keepalives") == "0":
        yield Finding(
            "keepalives",
            "warning",
            "off: a statement never ends if the server's machine disappears",
            "remove keepalives=0: asyncpool sets limits of its own",
            numbers,
        )
        return
    total = (idle or SYSTEM_IDLE) + interval * count
    whose = "" if facts.given & {*names, "tcp_user_timeout"} else " (asyncpool's defaults)"
    found = (
        f"after {span(idle or SYSTEM_IDLE)} of silence, {many(count, 'probe')}, {span(interval)}"
        f" apart; sent data may be unacknowledged for"
        f" {span(unanswered) if unanswered else 'minutes'}{whose}"
    )
    if total > LONG:
        advice = f"a lost server is noticed only after {span(total)}: use about keepalives_idle=10"
        yield Finding("keepalives", "note", found, advice, numbers)
    else:
        yield Finding("keepalives", "ok", found, facts=numbers)


def idle_session_timeout(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check that no timeout ends an idle connection before the pool pings it."""
    check = "idle_session_timeout"
    if facts.pooler is None:
        seconds = facts.number(check)
        yield _against_pings(check, "the server", seconds, f"ALTER ROLE {facts.user} SET {check}")
    elif (limit := facts.pooler.number("client_idle_timeout")) is not None:
        yield _against_pings(check, facts.pooler.name, limit, "client_idle_timeout")


def idle_in_transaction(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check that a timeout ends forgotten transactions."""
    check = "idle_in_transaction_session_timeout"
    seconds = facts.number(check)
    if seconds:
        found = f"the server ends a session that is idle in a transaction for {span(seconds)}"
        yield Finding(check, "ok", found, facts={"seconds": seconds})
        return
    yield Finding(
        check,
        "note",
        "off: a session idle in a transaction keeps its connection, its locks and dead rows",
        f"ALTER ROLE {facts.user} SET {check} = '60s', or the leak_timeout of the pool",
        {"seconds": 0.0},
    )


def statement_timeout(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check that a timeout limits how long a statement keeps a connection."""
    seconds = facts.number("statement_timeout")
    numbers = {"seconds": seconds}
    if seconds:
        found = f"the server ends a statement after {span(seconds)}"
        yield Finding("statement_timeout", "ok", found, facts=numbers)
        return
    yield Finding(
        "statement_timeout",
        "note",
        "off: a statement keeps its connection as long as it runs",
        f"ALTER ROLE {facts.user} SET statement_timeout = '30s', or another limit",
        numbers,
    )


def server_keepalives(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Check how long a client that disappeared keeps its connection on the server."""
    if facts.pooler is not None or facts.route == "unix":
        return
    idle, interval, count = (
        facts.number(f"tcp_keepalives_{name}") for name in ("idle", "interval", "count")
    )
    total = (idle or SYSTEM_IDLE) + interval * count
    found = f"a client that disappears keeps its connection on the server for {span(total)}"
    numbers = {"seconds": total, "idle": idle, "interval": interval, "count": count}
    if total <= 10 * LONG:
        yield Finding("server_keepalives", "ok", found, facts=numbers)
        return
    advice = "tcp_keepalives_idle=60 and tcp_keepalives_interval=10 in postgresql.conf"
    yield Finding("server_keepalives", "note", found, advice, numbers)


def _against_pings(check: str, who: str, seconds: float, where: str) -> Finding:
    interval, idle = DEFAULTS["ping_interval"], DEFAULTS["max_idle"]
    numbers = {"seconds": seconds, "ping_interval": interval, "max_idle": idle}
    if not seconds:
        found = f"off: only max_idle ({span(idle)}) closes idle connections of the pool"
        return Finding(check, "ok", found, facts=numbers)
    found = f"{who} ends a session that is idle for {span(seconds)}"
    if seconds > interval + DEFAULTS["ping_timeout"]:
        found += f"; the pool pings every {span(interval)}"
        return Finding(check, "ok", found, facts=numbers)
    return Finding(
        check,
        "warning",
        f"{found}; the pool pings only after {span(interval)}, so it reconnects again and again",
        f"give the pool ping_interval={seconds / 2:g}, or raise {where}",
        numbers,
    )
