"""`asyncpool doctor`: check a server through a pool, before an application uses it.

This module decides the order of the checks. Every failure is a finding, and the findings so far are
always shown.
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
from asyncpool.cli._facts import Facts, Plan, gather, version
from asyncpool.cli._findings import Finding, span, worst
from asyncpool.cli._limit import TimeLimitReached, within
from asyncpool.cli._refused import refused
from asyncpool.cli._report import print_json, print_report
from asyncpool.cli._target import BadDSN, brief, hosts, place, read

Check = Callable[[Facts, Plan], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
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
    _capacity.rolling_deploy,
    _capacity.fleet,
    _timeouts.connect_timeout,
    _timeouts.keepalives,
    _timeouts.idle_session_timeout,
    _timeouts.idle_in_transaction,
    _timeouts.statement_timeout,
    _timeouts.server_keepalives,
    _server_checks.client,
)


@dataclass(slots=True)
class Examination:
    """One run of the doctor, with its findings so far."""

    plan: Plan
    target: str = "no server"
    findings: list[Finding] = field(default_factory=list)

    async def run(self, dsn: str) -> None:
        """Run all checks."""
        each = hosts(dsn)
        if len(each) > 1:
            self.findings += await asyncio.gather(*map(_check_host, each))
        async with _pool(dsn) as pool:
            try:
                async with pool.acquire() as conn:
                    facts = await gather(dsn, pool, conn, hosts=len(each))
            except PoolError as error:
                self.findings.append(refused(error.__cause__ or error))
                return
            except (psycopg.Error, ValueError) as error:
                found = f"the examination failed: {brief(error)}"
                self.findings.append(Finding("connect", "problem", found))
                return
        self.target = f"{facts.place} as {facts.user}"
        for check in CHECKS:
            self.findings.extend(check(facts, self.plan))


def doctor(dsn: str | None, plan: Plan, timeout: float, *, as_json: bool) -> int:
    """Examine the server, print the report, and return the exit status."""
    # Their log lines would repeat the findings.
    for name in ("asyncpool", "psycopg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    examination = Examination(plan)
    try:
        target = read(dsn)
        examination.target = ",".join(map(place, hosts(target)))
        within(timeout, lambda: examination.run(target))
    except BadDSN as error:
        examination.findings.append(Finding("dsn", "problem", str(error)))
    except TimeLimitReached:
        found = f"the examination did not finish within {span(timeout)}"
        advice = "the server or the network does not answer; --timeout sets a longer limit"
        examination.findings.append(Finding("connect", "problem", found, advice))
    except Exception as error:  # noqa: BLE001 - any error is a finding
        examination.findings.append(refused(error))
    (print_json if as_json else print_report)(examination.target, plan, list(examination.findings))
    return 1 if worst(examination.findings) == "problem" else 0


async def _check_host(dsn: str) -> Finding:
    """Check whether one of several hosts answers, and its role."""
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
    """Make a pool of one connection, whose `acquire` raises the first error of the connect."""
    if "application_name" not in conninfo_to_dict(dsn):
        kwargs["application_name"] = "asyncpool-doctor"
    return AsyncConnectionPool(
        dsn,
        kwargs={"autocommit": True, "prepare_threshold": None, **kwargs},
        min_size=0,
        max_size=1,
        timeout=3600.0,
        name="doctor",
        classify=lambda _: Fault.ACCESS,  # never retry
    )
