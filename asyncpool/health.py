"""The health check: it never joins the wait queue and never raises.

It pings one idle connection. If none is idle, the report says what is known without a ping. A pool
that keeps no connection opens one instead.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, Literal

import anyio
import psycopg

from asyncpool._core.entry import State
from asyncpool._core.pool import Core
from asyncpool._core.redact import redacted
from asyncpool._core.runtime import Phase
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool._psycopg.driver import ACT

__all__ = ["HealthReport", "Status", "check_health"]

Status = Literal["ok", "degraded", "down"]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The result of a health check, in plain values."""

    status: Status
    """"ok": the pool serves. "degraded": it serves while requests wait, or connects or the ping
    fail, or connections are opened or replaced. "down": it is closed, not open, or has no
    connection that works."""
    reason: str
    """Why the status is not "ok", or why nothing was pinged; else empty."""
    latency: float | None
    """Seconds of the ping, or of the connect of a null pool; None if there was neither, or it
    failed."""
    server_version: str | None
    """Such as "16.4"; None while no connection is open."""
    role: Literal["primary", "standby"] | None
    """As the server reports it (PostgreSQL 14 and later); else None."""
    size: int
    max_size: int
    """0: no limit."""
    idle: int
    leased: int
    waiting: int
    last_error: str | None
    """The last failed connect or ping."""
    last_error_age: float | None
    """Seconds since `last_error`."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dict of JSON types."""
        return asdict(self)


async def check_health(core: Core[ACT], timeout: float) -> HealthReport:
    """Make a report within about `timeout` seconds."""
    latency, failed = await _measure_latency(core, timeout) if core.usable else (None, False)
    keeps_idle = core.settings.keeps_idle
    reached = latency is not None and not keeps_idle
    stats, outage = snapshot(core), core.outages.outage
    serving = stats.size - stats.opening - stats.closing
    if outage:
        # Those that are to be replaced when they are returned will serve nobody else.
        serving -= sum(each.is_retired for each in core.ledger.leased.values())
    reason = ""
    status: Status = "ok"
    if core.closed:
        status, reason = "down", "the pool is closed"
    elif core.runtime.phase is not Phase.OPEN:
        status, reason = "down", "the pool is not open yet"
    elif not core.usable:
        status, reason = "down", "the pool is open on another event loop"
    elif serving == 0 and stats.opening and not outage and not failed:
        status, reason = "degraded", "connections are being opened"
    elif serving == 0 and keeps_idle and not (stats.min_size or outage or failed or stats.waiting):
        reason = "no connection is open, and none is kept: min_size is 0"
    elif serving == 0 and keeps_idle and stats.closing and not outage and not failed:
        # New connections are opened once the server has hung up on the old ones.
        status, reason = "degraded", "connections are being replaced"
    elif serving == 0 and not reached:
        status, reason = "down", "no connection"
    elif failed:
        status, reason = (
            ("degraded" if stats.leased else "down"),
            f"the server did not answer a {'ping' if keeps_idle else 'connect'}",
        )
    elif outage:
        status, reason = "degraded", "new connections fail"
    elif stats.waiting:
        who = "1 request waits" if stats.waiting == 1 else f"{stats.waiting} requests wait"
        status, reason = "degraded", f"{who} for a connection"
    elif latency is None:
        cleaning = f", {stats.cleaning} being cleaned" if stats.cleaning else ""
        reason = f"no connection is idle ({stats.leased} in use{cleaning}): none was pinged"
    version, role = _server_facts(core)
    error = core.outages.last_error
    age = core.runtime.time() - core.outages.last_error_at if error is not None else None
    return HealthReport(
        status=status,
        reason=reason,
        latency=latency,
        server_version=version,
        role=role,
        size=stats.size,
        max_size=stats.max_size,
        idle=stats.idle,
        leased=stats.leased,
        waiting=stats.waiting,
        last_error=redacted(error) if error is not None else None,
        last_error_age=age,
    )


async def _measure_latency(core: Core[ACT], timeout: float) -> tuple[float | None, bool]:
    """Return the seconds of a ping or connect, and whether it failed; None, False: neither ran."""
    ledger, started, answered = core.ledger, core.runtime.time(), False
    if not core.settings.keeps_idle:
        if ledger.leased and ledger.size >= core.settings.max_size:
            return None, False
        with anyio.move_on_after(timeout):
            answered = await core.readiness.wait()
    elif ledger.idle:
        entry = ledger.idle[-1]
        ping = core.store.spawn(entry, core.store.ping(entry), "health")
        with anyio.move_on_after(timeout):
            await asyncio.wait({ping})
        answered = ping.done() and not ping.cancelled() and ping.result()
    else:
        return None, False
    return (core.runtime.time() - started, False) if answered else (None, True)


def _server_facts(core: Core[ACT]) -> tuple[str | None, Literal["primary", "standby"] | None]:
    """Return the server's version and role as libpq knows them, without a query."""
    for entry in core.ledger.entries:
        if entry.state in (State.IDLE, State.LEASED) and not entry.conn.closed:
            info = entry.conn.info
            try:
                major, minor = divmod(info.server_version, 10000)
                standby = info.parameter_status("in_hot_standby")
            except psycopg.Error:
                continue
            version = f"{major}.{minor}"
            return version, {"on": "standby", "off": "primary"}.get(standby or "")  # type: ignore[return-value]
    return None, None
