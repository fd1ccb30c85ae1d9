"""Checks that compare the limits on connections with the number that the pools may open."""

from __future__ import annotations

from collections.abc import Iterator

from asyncpool.cli._facts import Facts, FleetSeen, Plan
from asyncpool.cli._findings import Finding, Level, many
from asyncpool.cli._pooler import Pooler


def connections(facts: Facts, plan: Plan) -> Iterator[Finding]:
    """Check the server's limit minus its reserved connections, or the pooler's limit."""
    if facts.pooler is not None:
        yield _check_pooler(facts.pooler, plan)
        return
    limit, kept = int(facts.number("max_connections")), _reserved(facts)
    less = f", minus {kept} reserved" if kept else ""
    yield _compare(
        "connections",
        plan,
        f"the server allows {limit - kept:,} (max_connections={limit}{less})",
        limit=limit - kept,
        in_use=facts.in_use,
        remedy="raise max_connections, share them in a Fleet, or use PgBouncer",
        numbers={"max_connections": limit, "reserved": kept},
        fleets=facts.fleets,
    )


def fleet(facts: Facts, _: Plan) -> Iterator[Finding]:
    """Report what each fleet holds whose sessions the server has; no finding, if there is none."""
    for seen in facts.fleets:
        found = (
            f"{many(seen.members, 'member')} of the fleet {seen.name!r}"
            f" {'has' if seen.members == 1 else 'have'} {many(seen.connections, 'connection')}"
        )
        numbers = {"name": seen.name, "members": seen.members, "connections": seen.connections}
        yield Finding("fleet", "ok", found, facts=numbers)


def rolling_deploy(facts: Facts, plan: Plan) -> Iterator[Finding]:
    """Check that the old and the new processes of a rolling deploy fit at the same time."""
    limit, allows = _tightest(facts)
    if limit is None:
        return  # a pooler's, which does not show it
    wanted, workers = 2 * plan.connections, 2 * plan.workers
    processes = f"{workers} workers x {plan.max_size}"
    found = f"{wanted:,} wanted while old and new processes overlap ({processes}): {allows}"
    numbers = {"wanted": wanted, "limit": limit}
    if wanted <= limit:
        yield Finding("rolling_deploy", "ok", found, facts=numbers)
    elif facts.fleets and workers <= limit:
        found += f"; members of a fleet share them, about {limit // workers} each"
        yield Finding("rolling_deploy", "ok", found, facts=numbers)
    else:
        most = limit // workers
        smaller = f"max_size={most} at most" if most else f"{many(limit // 2, 'worker')} at most"
        advice = f"{smaller}; or replace fewer processes at a time, or share them in a Fleet"
        yield Finding("rolling_deploy", "warning", found, advice, numbers)


def role_limit(facts: Facts, plan: Plan) -> Iterator[Finding]:
    """Check the role's connection limit."""
    if facts.superuser:
        yield Finding(
            "role_limit",
            "note",
            f"{facts.user} is a superuser: no limit applies, and it also uses reserved connections",
            "give the application a role of its own",
        )
    elif facts.role_limit < 0:
        yield Finding("role_limit", "ok", f"the role {facts.user} has no limit of its own")
    else:
        yield _compare(
            "role_limit",
            plan,
            f"the role {facts.user} allows {facts.role_limit}",
            limit=facts.role_limit,
            in_use=facts.in_use_by_role,
            remedy=f"ALTER ROLE {facts.user} CONNECTION LIMIT ...",
        )


def database_limit(facts: Facts, plan: Plan) -> Iterator[Finding]:
    """Check the database's connection limit."""
    name = facts.place.rpartition("/")[2]
    if facts.database_limit < 0:
        yield Finding("database_limit", "ok", f"the database {name} has no limit of its own")
    elif facts.superuser:
        found = f"the limit of {name}, {facts.database_limit}, does not apply to a superuser"
        yield Finding("database_limit", "ok", found, facts={"limit": facts.database_limit})
    else:
        yield _compare(
            "database_limit",
            plan,
            f"the database {name} allows {facts.database_limit}",
            limit=facts.database_limit,
            in_use=facts.in_use_in_database,
            remedy=f"ALTER DATABASE {name} CONNECTION LIMIT ...",
        )


def _compare(
    check: str,
    plan: Plan,
    what: str,
    *,
    limit: int,
    in_use: int,
    remedy: str,
    numbers: dict[str, int] | None = None,
    fleets: tuple[FleetSeen, ...] = (),
) -> Finding:
    wanted, free = plan.connections, limit - in_use
    level: Level = "ok"
    advice = ""
    if wanted > limit and fleets and plan.workers <= limit:
        level = "note"
        advice = (
            f"members of a fleet share them, about {limit // plan.workers} each; other pools do not"
        )
    elif wanted > limit:
        level = "problem"
        most = limit // plan.workers
        smaller = f"max_size={most} at most" if most else f"{many(limit, 'worker')} at most"
        advice = f"{smaller}; or {remedy}"
    elif wanted > free:
        level = "warning"
        advice = f"see pg_stat_activity for the others; if they are permanent, {remedy}"
    found = f"{_wanted(plan)}: {what}, and {many(in_use, 'other')} {_are(in_use)} in use"
    facts = {"wanted": wanted, "limit": limit, "in_use": in_use, "free": free, **(numbers or {})}
    return Finding(check, level, found, advice, facts)


def _check_pooler(pooler: Pooler, plan: Plan) -> Finding:
    """Compare the connections, which are the pooler's clients, with the pooler's limits."""
    clients, sessions = pooler.number("max_client_conn"), pooler.number("pool_size")
    sessions = sessions or pooler.number("default_pool_size")
    wanted = plan.connections
    numbers = {"wanted": wanted, "max_client_conn": clients, "pool_size": sessions}
    if clients is None or sessions is None:
        return Finding(
            "connections",
            "note",
            f"{_wanted(plan)}: they connect to {pooler.name}, which does not show"
            " its limits to this user",
            "compare them with max_client_conn and pool_size, which stats_users may see",
            numbers,
        )
    found = (
        f"{_wanted(plan)}: {pooler.name} allows {clients:,} clients (max_client_conn), and"
        f" {many(sessions, 'session')} for this user and database (pool_size)"
    )
    if wanted > clients:
        advice = f"max_size={clients // plan.workers} at most; or raise max_client_conn"
        return Finding("connections", "problem", found, advice, numbers)
    if wanted > sessions and pooler.mode == "session":
        advice = "raise pool_size: in session mode the rest wait until a client disconnects"
        return Finding("connections", "warning", found, advice, numbers)
    return Finding("connections", "ok", found, facts=numbers)


def _reserved(facts: Facts) -> int:
    """Return the number of connections that the server keeps from this role."""
    kept = 0 if facts.superuser else int(facts.number("superuser_reserved_connections"))
    return kept + (0 if facts.uses_reserved else int(facts.number("reserved_connections")))


def _tightest(facts: Facts) -> tuple[int | None, str]:
    """Return the lowest limit on connections that applies, and a text; None: it is unknown."""
    if facts.pooler is not None:
        clients = facts.pooler.number("max_client_conn")
        return clients, f"{facts.pooler.name} allows {clients} clients"
    server = int(facts.number("max_connections")) - _reserved(facts)
    limits = [(server, f"the server allows {server:,}")]
    if not facts.superuser:
        name = facts.place.rpartition("/")[2]
        for limit, whose in (
            (facts.role_limit, f"the role {facts.user}"),
            (facts.database_limit, f"the database {name}"),
        ):
            if limit >= 0:
                limits.append((limit, f"{whose} allows {limit:,}"))
    return min(limits)


def _wanted(plan: Plan) -> str:
    each = f" ({plan.workers} workers x {plan.max_size})" if plan.workers > 1 else ""
    return f"{plan.connections:,} wanted{each}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
