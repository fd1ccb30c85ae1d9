"""`asyncpool doctor`: a look at a server through a pool, before an application does it.

The order of events is decided here. Whatever fails is a finding, and what was found until then is
shown in any case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from asyncpool import AsyncConnectionPool, Connection, Fault, PoolError
from asyncpool.cli import _capacity, _server_checks, _timeouts
from asyncpool.cli._facts import Asked, Facts, gather, version
from asyncpool.cli._findings import Finding, span, worst
from asyncpool.cli._limit import TimeUp, within
from asyncpool.cli._refused import refused
from asyncpool.cli._report import print_json, print_report
from asyncpool.cli._target import BadDSN, brief, hosts, place, read

Look = Callable[[Facts, Asked], Iterator[Finding]]

LOOKS: tuple[Look, ...] = (
    _server_checks.server,
    _server_checks.role,
    _server_checks.round_trip,
    _server_checks.clock,
    _server_checks.tls,
    _server_checks.pooler,
    _server_checks.prepared_statements,
    _capacity.connections,
    _capacity.role_limit,
    _capacity.database_limit,
    _timeouts.connect_timeout,
    _timeouts.keepalives,
    _timeouts.idle_session_timeout,
    _timeouts.idle_in_transaction,
    _timeouts.statement_timeout,
    _timeouts.server_keepalives,
    _server_checks.client,
)


@dataclass(slots=True)
class Visit:
    """One look at a server, and what it has come to so far."""

    asked: Asked
    target: str = "no server"
    findings: list[Finding] = field(default_factory=list)

    async def pay(self, dsn: str) -> None:
        """Look at all of it."""
        each = hosts(dsn)
        if len(each) > 1:
            self.findings += await asyncio.gather(*map(_knock, each))
        async with _pool(dsn) as pool:
            try:
                async with pool.acquire() as conn:
                    facts = await gather(dsn, pool, conn, hosts=len(each))
            except PoolError as error:
                self.findings.append(refused(error.__cause__ or error))
                return
            except (psycopg.Error, ValueError) as error:
                found = f"the look was broken off: {brief(error)}"
                self.findings.append(Finding("connect", "problem", found))
                return
        self.target = f"{facts.place} as {facts.user}"
        for look in LOOKS:
            self.findings.extend(look(facts, self.asked))


def doctor(dsn: str | None, asked: Asked, timeout: float, *, as_json: bool) -> int:
    """Look, report, and return the exit status."""
    # What they have to say is going to be a finding.
    for name in ("asyncpool", "psycopg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    visit = Visit(asked)
    try:
        target = read(dsn)
        visit.target = ",".join(map(place, hosts(target)))
        within(timeout, lambda: visit.pay(target))
    except BadDSN as error:
        visit.findings.append(Finding("dsn", "problem", str(error)))
    except TimeUp:
        found = f"the look was not over within {span(timeout)}"
        advice = "the server or the network is silent; --timeout gives it longer"
        visit.findings.append(Finding("connect", "problem", found, advice))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        visit.findings.append(refused(error))
    (print_json if as_json else print_report)(visit.target, asked, list(visit.findings))
    return 1 if worst(visit.findings) == "problem" else 0


async def _knock(dsn: str) -> Finding:
    """Is one of several hosts there, and what is it?"""
    at, began = place(dsn), perf_counter()
    try:
        async with _pool(dsn, target_session_attrs="any") as pool, pool.acquire() as conn:
            took = perf_counter() - began
            cursor = await conn.execute("SELECT pg_catalog.pg_is_in_recovery()")
            (standby,) = await cursor.fetchone() or (False,)
            is_now = "standby" if standby else "primary"
            number = conn.info.server_version
    except psycopg.Error as error:
        failure = refused(error.__cause__ or error)
        return Finding("host", "warning", f"{at}: {failure.found}", failure.advice, {"place": at})
    found = f"{at} is a {is_now}, PostgreSQL {version(number)}, connected in {span(took)}"
    return Finding(
        "host", "ok", found, facts={"place": at, "role": is_now, "version": number, "seconds": took}
    )


def _pool(dsn: str, **kwargs: Any) -> AsyncConnectionPool[Connection[Any]]:
    """One connection as a pool has it, or the first error of getting it."""
    if "application_name" not in conninfo_to_dict(dsn):
        kwargs["application_name"] = "asyncpool-doctor"
    return AsyncConnectionPool(
        dsn,
        kwargs={"autocommit": True, "prepare_threshold": None, **kwargs},
        min_size=0,
        max_size=1,
        timeout=3600.0,
        name="doctor",
        classify=lambda _: Fault.ACCESS,  # of which waiting is no cure
    )
