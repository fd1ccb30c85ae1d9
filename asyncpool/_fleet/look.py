"""The statement of a member's look: it publishes the mark, then counts the backends.

One statement does both, in this order, with the rights that every role has: the name, the role and
the database of all backends are visible to all. Of other roles' backends the kind is not, so their
background and parallel workers count as well: there may be more places than it seems.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from asyncpool._fleet.mark import STAMPS, Mark, SessionMarks, parse
from asyncpool._fleet.rule import Member
from asyncpool._psycopg.own_statements import run_in_autocommit
from asyncpool.sizing import LIMITS

# `mark` is evaluated before the argument of pg_stat_get_activity, which is before its call: so the
# mark is published first. Behind a pooler the session may be another client's, and has no mark.
# Marks of other roles do not count: nobody but a member can claim anything.
LOOK = """
WITH mark AS MATERIALIZED (
    SELECT pg_catalog.set_config('application_name', {name} || pg_catalog.to_hex((
        pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 10)::bigint % {stamps}
    ), false) AS name
    WHERE pg_catalog.pg_backend_pid() = {pid}
), backends AS MATERIALIZED (
    SELECT s.usesysid AS role, s.datid AS database,
        CASE WHEN pg_catalog.strpos(s.application_name, {prefix}) > 0 AND (
            s.usesysid = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user)
            OR pg_catalog.strpos(s.application_name, {own}) > 0
        ) THEN pg_catalog.substr(
            s.application_name, pg_catalog.strpos(s.application_name, {prefix})) END AS mark,
        pg_catalog.count(*) AS number,
        coalesce(pg_catalog.date_part('epoch',
            pg_catalog.clock_timestamp() - pg_catalog.min(s.backend_start)), 0) AS age
    FROM pg_catalog.pg_stat_get_activity(
        (SELECT CASE WHEN pg_catalog.count(m.name) < 0 THEN 0 END FROM mark m)) s
    WHERE s.usesysid IS NOT NULL AND s.datid IS NOT NULL
        AND coalesce(s.backend_type, 'client backend') = 'client backend'
    GROUP BY 1, 2, 3
)
SELECT pg_catalog.json_build_object(
    'limits', ({limits})::json,
    'pid', pg_catalog.pg_backend_pid(),
    'now', (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 10)::bigint % {stamps},
    'name', (SELECT m.name FROM mark m),
    'marks', (SELECT pg_catalog.json_agg(
            pg_catalog.json_build_array(b.mark, b.number, b.age))
        FROM backends b WHERE b.mark IS NOT NULL),
    'others', (SELECT pg_catalog.json_build_object(
        'all', coalesce(pg_catalog.sum(b.number), 0),
        'role', coalesce(pg_catalog.sum(b.number) FILTER (WHERE b.role = r.oid), 0),
        'database', coalesce(pg_catalog.sum(b.number) FILTER (WHERE b.database = d.oid), 0))
        FROM backends b WHERE b.mark IS NULL)
)::text
FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()
"""


class BehindPooler(Exception):
    """A pooler is between the connection and the server."""


@dataclass(frozen=True, slots=True)
class View:
    """The result of one look."""

    places: int
    """The places for the fleet, without those of others; the reserve is among them."""
    others: int
    """The backends that do not belong to the fleet."""
    members: dict[str, Member]


async def look(
    conn: psycopg.AsyncConnection[Any], marks: SessionMarks, want: int, claim: int
) -> View:
    """Publish the member's mark on a session, then return what the server has.

    Raises:
        BehindPooler: the session may be another client's.
        psycopg.Error: the statement failed, or the connection is lost.
    """
    name = conn.info.parameter_status("application_name") or ""
    query = sql.SQL(LOOK).format(
        name=marks.unstamped(name, want, claim),
        prefix=marks.prefix,
        own=f"{marks.prefix}{marks.member}/",
        pid=conn.info.backend_pid,
        stamps=STAMPS,
        limits=sql.SQL(LIMITS),
    )
    result = (await run_in_autocommit(conn, query.as_bytes(conn))).pgresult
    text = None if result is None else result.get_value(0, 0)
    if text is None:
        msg = "the server returned no row"
        raise psycopg.OperationalError(msg)
    facts = json.loads(text)
    if facts["pid"] != conn.info.backend_pid:
        raise BehindPooler
    marks.looked(conn, facts["name"])
    return view_of(facts, marks.fleet)


def view_of(facts: dict[str, Any], fleet: str) -> View:
    """Return the view that the statement's answer describes."""
    limits, others = facts["limits"], facts["others"]
    unmarked, counts, ages = 0, dict[str, int](), dict[str, float]()
    newest = dict[str, Mark]()
    for text, number, age in facts["marks"] or ():
        mark = parse(text, fleet)
        if mark is None:
            unmarked += number
            continue
        counts[mark.member] = counts.get(mark.member, 0) + number
        ages[mark.member] = max(ages.get(mark.member, 0.0), age)
        before = newest.get(mark.member)
        if before is None or _order(mark, facts["now"]) < _order(before, facts["now"]):
            newest[mark.member] = mark
    left = [limits["max_connections"] - others["all"]]
    if not limits["superuser"]:
        reserved = 0 if limits["privileged"] else limits["reserved"]
        left[0] -= limits["for_superusers"] + reserved
        left += [limits[who] - others[who] for who in ("role", "database") if limits[who] >= 0]
    places = min(left) - unmarked
    members = {
        who: _member(counts[who], mark, max(places, 0), facts["now"], ages[who])
        for who, mark in newest.items()
    }
    return View(places, others["all"] + unmarked, members)


def _member(size: int, mark: Mark, places: int, now: int, age: float) -> Member:
    """Return the member with this newest mark; no number in it counts for more than `places`."""
    if mark.want is None:
        return Member(size, mark.weight, age=age)
    return Member(size, mark.weight, min(mark.want, places), min(mark.claim, places), mark.age(now))


def _order(mark: Mark, now: int) -> tuple[bool, float]:
    return mark.want is None, mark.age(now)
