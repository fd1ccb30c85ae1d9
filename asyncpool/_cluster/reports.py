"""The reports of a cluster: frozen, made on request."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from asyncpool._cluster.host import Host
from asyncpool._cluster.members import Members
from asyncpool._diagnostics.explain import shown_events
from asyncpool.health import HealthReport, Status
from asyncpool.insight import Event, Explanation
from asyncpool.stats import PoolStats

TEXT_LIMIT = 10
"""The most events in the text for people."""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host of a cluster, as the last look has found it."""

    host: str
    """The name, numeric address or socket folder, as given."""
    port: int
    name: str
    """The host's name in messages and pools: "db1:5432", or "10.0.0.1:5432" if it has a
    `hostaddr`."""
    role: Literal["primary", "standby"] | None
    """The role at the last look that was answered; None: there was none."""
    reachable: bool
    """Whether it answers."""
    lag: float
    """Seconds that it lags behind the primary; infinite: not known."""
    replayed: str | None
    """The position of the log that it has replayed, or flushed as a primary: "16/B374D848"."""
    drained: bool
    """Whether `cluster.drain()` has taken it out of service."""
    takes_reads: bool
    reason: str
    """Why it takes no reads; empty: it takes some."""
    under_way: int
    """The reads that wait or run there."""
    reads: int
    """The reads that went there, also those that failed or moved to another host."""
    stats: PoolStats
    """The numbers of its pool."""


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """The result of a cluster's health check."""

    status: Status
    """"ok": the primary serves and a host takes reads. "degraded": one of the two is so, or a host
    is down. "down": neither."""
    reason: str
    """Why the status is not "ok"; else empty."""
    write: HealthReport
    """The report of the pool of the primary."""
    hosts: dict[str, HealthReport]
    """The report of each host's pool by the host's name."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dict of JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ClusterExplanation:
    """Which host does what, and why; `str()` gives the text for people."""

    name: str
    primary: str | None
    """The name of the host that is the primary, also while it is down."""
    hosts: tuple[HostStatus, ...]
    events: tuple[Event, ...]
    """The last 100 changes of roles and hosts, the latest first."""
    write: Explanation
    """The explanation of `cluster.write`."""
    read: dict[str, Explanation]
    """The explanation of each host's pool by the host's name."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dict of JSON types; an infinite number becomes None."""
        return {
            "name": self.name,
            "primary": self.primary,
            "hosts": [_finite(asdict(host)) for host in self.hosts],
            "events": [asdict(event) for event in self.events],
            "write": self.write.as_dict(),
            "read": {name: each.as_dict() for name, each in self.read.items()},
        }

    def __str__(self) -> str:
        lines = [f"cluster {self.name!r}: the primary is {self.primary or 'not known'}"]
        for host in self.hosts:
            reads = "takes reads" if host.takes_reads else f"takes no reads: {host.reason}"
            lag = f", lags {host.lag:.3g} s" if host.role == "standby" else ""
            reached = "" if host.reachable else ", down"
            state = f"{host.role}{reached}" if host.role else "not seen yet"
            lines.append(f"  {host.name}: {state}{lag}, {reads}")
            lines.append(f"    {host.under_way} reads under way; {self.read[host.name].status}")
        lines += ["write: " + "\n  ".join(str(self.write).splitlines())]
        lines += [f"{each.age:.1f} s ago: {each.text}" for each in self.events[:TEXT_LIMIT]]
        return "\n".join(lines)


def status_of(host: Host) -> HostStatus:
    """Return the status of a host."""
    stats = host.pool.stats()
    return HostStatus(
        host=host.address.host,
        port=host.address.port,
        name=host.name,
        role=host.role,
        reachable=host.reachable,
        lag=host.lag,
        replayed=host.replayed,
        drained=host.drained,
        takes_reads=not host.reason,
        reason=host.reason,
        under_way=host.reads.under_way,
        reads=max(0, stats.requests - host.pool.looks),
        stats=stats,
    )


def explain(members: Members, write: Explanation, clock: Callable[[], float]) -> ClusterExplanation:
    """Return the explanation of a cluster."""
    hosts, now = members.all(), clock()
    return ClusterExplanation(
        name=members.name,
        primary=None if members.primary is None else members.primary.name,
        hosts=tuple(status_of(host) for host in hosts),
        events=tuple(shown_events(members.changes.events, now)),
        write=write,
        read={host.name: host.pool.explain() for host in hosts},
    )


def health_of(
    members: Members, write: HealthReport, hosts: dict[str, HealthReport]
) -> ClusterHealth:
    """Return the health of a cluster from that of its pools."""
    primary, problems = members.primary, []
    if primary is None:
        problems.append("no primary is known")
    elif primary.error is not None:
        problems.append(f"the primary {primary.name} is down: {primary.error}")
    elif write.status == "down":
        problems.append(f"the pool of the primary is down: {write.reason}")
    writes = not problems
    if not members.readable:
        problems.append(f"no host takes reads: {members.describe()}")
    problems += [
        f"{host.name} takes no reads: {host.reason}"
        for host in members.all()
        if members.readable and host is not primary and host.reason
    ]
    reads = bool(members.readable)
    status: Status = "down" if not (writes or reads) else "degraded" if problems else "ok"
    return ClusterHealth(status=status, reason="; ".join(problems), write=write, hosts=hosts)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _finite(value) if isinstance(value, dict) else None if value == math.inf else value
        for name, value in values.items()
    }
