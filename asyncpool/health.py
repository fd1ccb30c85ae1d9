"""Is the pool able to serve? Answered without waiting in its line, and without raising.

The one ping is made on a connection that happens to be idle; when all are lent out there is none to
ping, and the report says what is known without it. Where none is kept, one is opened in its place.
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
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool._psycopg.driver import ACT

__all__ = ["HealthReport", "Status", "examine"]

Status = Literal["ok", "degraded", "down"]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a health check found; plain values, so that `as_dict` turns into JSON."""

    status: Status
    """ok: serving. degraded: serving, but with waiters, without room, or after a failed ping or
    connect; also while connections are opened or replaced. down: closed, or nothing to serve
    with."""
    reason: str
    """Why it is not ok, or what could not be tried, in words; else empty."""
    latency: float | None
    """Seconds of one round trip, or of a connect where none is kept; None when nothing was idle to
    ping."""
    server_version: str | None
    """Such as "16.4"; None before the first connection."""
    role: Literal["primary", "standby"] | None
    """As the server has reported it (PostgreSQL 14 and later); else None."""
    size: int
    max_size: int
    """0: there is no bound."""
    idle: int
    leased: int
    waiting: int
    last_error: str | None
    """The last failed connect or ping."""
    last_error_age: float | None
    """Seconds since then."""

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict of JSON's own types."""
        return asdict(self)


async def examine(core: Core[ACT], timeout: float) -> HealthReport:
    """Make a report within about `timeout` seconds."""
    latency, failed = await _try(core, timeout) if core.usable else (None, False)
    keeps_idle = core.settings.keeps_idle
    reached = latency is not None and not keeps_idle
    stats, outage = snapshot(core), core.store.outage
    serving = stats.size - stats.opening - stats.closing
    reason = ""
    status: Status = "ok"
    if core.closed:
        status, reason = "down", "the pool is closed"
    elif not core.opened:
        status, reason = "down", "the pool is not open yet"
    elif not core.usable:
        status, reason = "down", "the pool is open on another event loop"
    elif serving == 0 and stats.opening and not outage and not failed:
        status, reason = "degraded", "connections are being opened"
    elif serving == 0 and keeps_idle and not (stats.min_size or outage or failed or stats.waiting):
        reason = "no connection is open, and none is kept: min_size is 0"
    elif serving == 0 and keeps_idle and stats.closing and not outage and not failed:
        # They are opened once the server has hung up on the ones before.
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
        status, reason = "degraded", f"{stats.waiting} requests wait for a connection"
    elif latency is None:
        being = f", {stats.cleaning} being cleaned" if stats.cleaning else ""
        reason = f"no connection is idle ({stats.leased} lent{being}): none was pinged"
    version, role = _server(core)
    error = core.store.last_error
    age = core.store.time() - core.store.last_error_at if error is not None else None
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


async def _try(core: Core[ACT], timeout: float) -> tuple[float | None, bool]:
    """The latency of a ping or connect, and whether it has failed; None, False: there was none."""
    ledger, started, works = core.ledger, core.store.time(), False
    if not core.settings.keeps_idle:
        if ledger.leased and ledger.size >= core.settings.max_size:
            return None, False
        with anyio.move_on_after(timeout):
            works = await core.store.fill()
    elif ledger.idle:
        ping = core.store.tasks.spawn(core.store.ping(ledger.idle[-1]), "health")
        with anyio.move_on_after(timeout):
            await asyncio.wait({ping})
        works = ping.done() and not ping.cancelled() and ping.result()
    else:
        return None, False
    return (core.store.time() - started, False) if works else (None, True)


def _server(core: Core[ACT]) -> tuple[str | None, Literal["primary", "standby"] | None]:
    """What libpq knows with no query: the server's version and whether it is a standby."""
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
