"""Looks at how many connections there may be, held against those that the pools may open."""

from __future__ import annotations

from collections.abc import Iterator

from asyncpool.cli._facts import Asked, Facts
from asyncpool.cli._findings import Finding, Level, many
from asyncpool.cli._pooler import Pooler


def connections(facts: Facts, asked: Asked) -> Iterator[Finding]:
    """The server's limit, less what it keeps for others; or the pooler's."""
    if facts.pooler is not None:
        yield _through(facts.pooler, asked)
        return
    limit = int(facts.number("max_connections"))
    kept = 0 if facts.superuser else int(facts.number("superuser_reserved_connections"))
    kept += 0 if facts.uses_reserved else int(facts.number("reserved_connections"))
    less = f", less {kept} reserved" if kept else ""
    yield _compare(
        "connections",
        asked,
        f"the server has {limit - kept:,} (max_connections={limit}{less})",
        limit=limit - kept,
        in_use=facts.in_use,
        remedy="raise max_connections, or put PgBouncer in between",
        numbers={"max_connections": limit, "reserved": kept},
    )


def role_limit(facts: Facts, asked: Asked) -> Iterator[Finding]:
    """What the role may have."""
    if facts.superuser:
        yield Finding(
            "role_limit",
            "note",
            f"{facts.user} is a superuser: no limit binds it, and it takes reserved ones too",
            "give the application a role of its own",
        )
    elif facts.role_limit < 0:
        yield Finding("role_limit", "ok", f"the role {facts.user} has no limit of its own")
    else:
        yield _compare(
            "role_limit",
            asked,
            f"the role {facts.user} has {facts.role_limit}",
            limit=facts.role_limit,
            in_use=facts.in_use_by_role,
            remedy=f"ALTER ROLE {facts.user} CONNECTION LIMIT ...",
        )


def database_limit(facts: Facts, asked: Asked) -> Iterator[Finding]:
    """What the database may have."""
    name = facts.place.rpartition("/")[2]
    if facts.database_limit < 0:
        yield Finding("database_limit", "ok", f"the database {name} has no limit of its own")
    elif facts.superuser:
        found = f"that of {name}, {facts.database_limit}, does not bind a superuser"
        yield Finding("database_limit", "ok", found, facts={"limit": facts.database_limit})
    else:
        yield _compare(
            "database_limit",
            asked,
            f"the database {name} has {facts.database_limit}",
            limit=facts.database_limit,
            in_use=facts.in_use_in_database,
            remedy=f"ALTER DATABASE {name} CONNECTION LIMIT ...",
        )


def _compare(
    check: str,
    asked: Asked,
    what: str,
    *,
    limit: int,
    in_use: int,
    remedy: str,
    numbers: dict[str, int] | None = None,
) -> Finding:
    wanted, free = asked.connections, limit - in_use
    level: Level = "ok"
    advice = ""
    if wanted > limit:
        level = "problem"
        most = limit // asked.workers
        smaller = f"max_size={most} at most" if most else f"{many(limit, 'worker')} at most"
        advice = f"{smaller}; or {remedy}"
    elif wanted > free:
        level = "warning"
        advice = f"see whose they are in pg_stat_activity; if they are to stay, {remedy}"
    found = f"{_wanted(asked)}: {what}, and {many(in_use, 'other')} {_are(in_use)} in use"
    facts = {"wanted": wanted, "limit": limit, "in_use": in_use, "free": free, **(numbers or {})}
    return Finding(check, level, found, advice, facts)


def _through(pooler: Pooler, asked: Asked) -> Finding:
    """They are the pooler's clients; how many sessions it has is for it to know."""
    clients, sessions = pooler.number("max_client_conn"), pooler.number("pool_size")
    sessions = sessions or pooler.number("default_pool_size")
    wanted = asked.connections
    numbers = {"wanted": wanted, "max_client_conn": clients, "pool_size": sessions}
    if clients is None or sessions is None:
        return Finding(
            "connections",
            "note",
            f"{_wanted(asked)}: they are the clients of {pooler.name}, which does not tell"
            " its limits to this user",
            "compare them with max_client_conn and pool_size; stats_users may see both",
            numbers,
        )
    found = (
        f"{_wanted(asked)}: {pooler.name} has room for {clients:,} clients (max_client_conn), and"
        f" {many(sessions, 'session')} for this user and database (pool_size)"
    )
    if wanted > clients:
        advice = f"max_size={clients // asked.workers} at most; or raise max_client_conn"
        return Finding("connections", "problem", found, advice, numbers)
    if wanted > sessions and pooler.mode == "session":
        advice = "raise pool_size: in session mode the rest wait until a client disconnects"
        return Finding("connections", "warning", found, advice, numbers)
    return Finding("connections", "ok", found, facts=numbers)


def _wanted(asked: Asked) -> str:
    each = f" ({asked.workers} workers x {asked.max_size})" if asked.workers > 1 else ""
    return f"{asked.connections:,} wanted{each}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
