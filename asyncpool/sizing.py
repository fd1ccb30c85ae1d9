"""The advice on a pool's size: queueing theory over the measured load.

The formulas are pure functions. The measurements cover the time since the pool was opened, so ask
for advice on a varying load while it is high.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from asyncpool._core.pool import Core
from asyncpool._core.settings import count, duration
from asyncpool._diagnostics.snapshot import snapshot

__all__ = ["Advice", "Expectation"]

LIMITS_TIMEOUT = 1.0
"""Seconds for the query of the server's limits."""

# Only max_connections limits a superuser. The reserved_connections of PostgreSQL 16 are for
# superusers and members of pg_use_reserved_connections.
# Source: https://www.postgresql.org/docs/current/runtime-config-connection.html
LIMITS = """
SELECT pg_catalog.json_build_object(
    'max_connections', pg_catalog.current_setting('max_connections')::int,
    'for_superusers', pg_catalog.current_setting('superuser_reserved_connections')::int,
    'reserved', coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0),
    'superuser', r.rolsuper,
    'privileged', coalesce((
        SELECT pg_catalog.pg_has_role(r.oid, u.oid, 'USAGE')
        FROM pg_catalog.pg_roles u WHERE u.rolname = 'pg_use_reserved_connections'), false),
    'role', r.rolconnlimit,
    'database', d.datconnlimit
)::text
FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()
"""


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected behaviour of a pool of one size under the load."""

    size: int
    """Connections."""
    utilisation: float
    """The average share of them in use; at 1 and above the wait queue grows without limit."""
    waits: float
    """The share of requests that wait."""
    mean_wait: float
    """The average wait in seconds over all requests, including those that do not wait."""
    p99_wait: float
    """Seconds that 99 of 100 requests wait at most."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommended size of a pool and the measured load; `str()` gives the text for people.

    Durations are seconds. A request is one that borrows a connection for itself; the load of
    one-shots that share connections, and of listeners, is `shared_load`.
    """

    window: float
    """The time since the pool was opened."""
    requests: int
    """Requests in that time."""
    arrivals: float
    """Requests per second."""
    mean_use: float
    """The average duration of a lease; current leases count with their age."""
    use_p50: float
    """The median of the last `samples` leases."""
    use_p99: float
    """The 99th percentile of the last `samples` leases."""
    samples: int
    shared_load: float
    """The average number of connections that one-shots share, or that listen for notifications."""
    load: float
    """The average number of connections in use if no request waits: by Little's law, `arrivals`
    times `mean_use`, plus `shared_load`."""
    max_size: int
    """The pool's `max_size` now."""
    expected: tuple[Expectation, ...]
    """For one connection less, for `max_size`, and for one more."""
    utilisation: float
    """The largest average share of the connections in use, as requested."""
    recommended: int | None
    """The smallest size for that; None: nothing has been measured."""
    workers: int
    """Pools like this one on the same server."""
    available: int | None
    """Connections that the server leaves to this role in this database; None: not known."""
    unknown: str
    """Why `available` is not known; else empty."""
    refused: int
    """Requests that got `TooManyRequests` since the pool was opened."""
    overload: str | None
    """The pool's `overload` now: "wait", "refuse" or None."""

    @property
    def exceeds(self) -> bool:
        """Whether all the pools together may open more connections than are available."""
        return self.available is not None and self.max_size * self.workers > self.available

    @property
    def overloaded(self) -> bool:
        """Whether requests were refused, or the load is more than `max_size` can serve."""
        return self.refused > 0 or 0 < self.max_size <= self.load

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def erlang_c(servers: int, load: float) -> float:
    """Return the share of requests that wait in an M/M/c queue: Erlang's second formula.

    Source: A. K. Erlang, "Solution of some Problems in the Theory of Probabilities of Significance
    in Automatic Telephone Exchanges", 1917; computed by the recurrence of his first formula.

    Args:
        servers: connections, c.
        load: connections in use on average if no request waits: arrivals times use.

    Returns:
        From 0 to 1; 1 if the load is at least `servers`.
    """
    if load <= 0:
        return 0.0
    if load >= servers:
        return 1.0
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def expect(size: int, load: float, use: float) -> Expectation:
    """Return the waits in an M/M/c queue: random arrivals, exponentially distributed use times.

    Use times that vary less give shorter waits; arrivals in bursts give longer ones.

    Args:
        size: connections, at least 1.
        load: as for `erlang_c`.
        use: the average seconds of one use.
    """
    waits = erlang_c(size, load)
    if load >= size:
        return Expectation(size, load / size, waits, math.inf, math.inf)
    pace = use / (size - load)
    return Expectation(
        size, load / size, waits, waits * pace, pace * max(math.log(max(waits, 1e-300) * 100), 0.0)
    )


def size_for(load: float, use: float, utilisation: float, p99_wait: float | None = None) -> int:
    """Return the smallest size within the limits on utilisation and on the p99 wait."""
    size = max(math.ceil(load / utilisation - 1e-9), 1)
    while p99_wait is not None and expect(size, load, use).p99_wait > p99_wait:
        size += 1
    return size


async def advise(
    core: Core[Any],
    ask: Callable[..., Awaitable[Any]],
    workers: int,
    utilisation: float,
    p99_wait: float | None,
) -> Advice:
    """Make the advice of `AsyncConnectionPool.advise`; `ask` runs a query on the pool."""
    if count("workers", workers) == 0:
        msg = "workers must be at least 1, as this pool counts: got 0"
        raise ValueError(msg)
    if not 0 < duration("utilisation", utilisation) < 1:
        msg = f"utilisation must be between 0 and 1: got {utilisation!r}"
        raise ValueError(msg)
    if p99_wait is not None:
        p99_wait = duration("p99_wait", p99_wait)
    stats, counters, now = snapshot(core), core.runtime.counters, core.runtime.time()
    leased = core.ledger.leased.values()
    ages = [now - entry.leased_at for entry in leased if not entry.lease.is_shared]
    shared = counters.shared_time + sum(
        now - entry.leased_at for entry in leased if entry.lease.is_shared
    )
    uses = counters.use.count + len(ages)
    window = max(now - core.opened_at, 0.0) if core.opened_at else 0.0
    requests = max(stats.requests - stats.requests_shared, uses)
    mean_use = (counters.use.sum + sum(ages)) / uses if uses else 0.0
    arrivals = requests / window if window else 0.0
    shared_load = shared / window if window else 0.0
    load = arrivals * mean_use + shared_load
    sizes = [size for size in (stats.max_size + step for step in (-1, 0, 1)) if size]
    use_p50, use_p99 = (counters.use.recent_quantile(share) for share in (0.5, 0.99))
    samples = len(counters.use.recent())
    available, unknown = await _available(ask)  # last, as it is a request itself
    return Advice(
        window=window,
        requests=requests,
        arrivals=arrivals,
        mean_use=mean_use,
        use_p50=use_p50,
        use_p99=use_p99,
        samples=samples,
        shared_load=shared_load,
        load=load,
        max_size=stats.max_size,
        expected=tuple(expect(size, load, mean_use) for size in sizes) if load else (),
        utilisation=utilisation,
        recommended=size_for(load, mean_use, utilisation, p99_wait) if load else None,
        workers=workers,
        available=available,
        unknown=unknown,
        refused=stats.requests_refused,
        overload=core.settings.overload,
    )


async def _available(ask: Callable[..., Awaitable[Any]]) -> tuple[int | None, str]:
    """Return the connections that the server leaves to this role, or why they are not known."""
    try:
        facts = json.loads(await ask(LIMITS, timeout=LIMITS_TIMEOUT, prepare=False))
        limits = [facts["max_connections"]]
        if not facts["superuser"]:
            reserved = facts["for_superusers"] + (0 if facts["privileged"] else facts["reserved"])
            limits[0] -= reserved
            limits += [facts[who] for who in ("role", "database") if facts[who] >= 0]
    except (psycopg.Error, TypeError, ValueError, KeyError) as error:
        return None, (str(error) or type(error).__name__).splitlines()[0]
    return min(limits), ""


def _lines(advice: Advice) -> Iterator[str]:
    """Yield the lines of the text for people."""
    if not advice.load:
        yield f"no request in the {advice.window:.0f} s since the pool was opened: no advice yet"
    else:
        yield (
            f"{advice.requests} requests in {advice.window:.1f} s, {advice.arrivals:.4g} a second;"
            f" a lease lasts {_time(advice.mean_use)} on average"
            + (
                f" (p50 {_time(advice.use_p50)}, p99 {_time(advice.use_p99)} of the last"
                f" {advice.samples})"
                if advice.samples
                else ""
            )
        )
        yield f"connections needed on average: {advice.load:.2f}" + (
            f", {advice.shared_load:.2f} of them by one-shots that share or listeners"
            * bool(advice.shared_load)
        )
        for each in advice.expected:
            yield f"  with {each.size}: {_describe(each)}" + " (now)" * (
                each.size == advice.max_size
            )
        yield f"recommended max_size: {advice.recommended}"
        if advice.overloaded:
            yield from _about_overload(advice)
    together = f"{advice.workers} x {advice.max_size}"
    if advice.available is None:
        yield f"the connections that the server leaves to this role are not known: {advice.unknown}"
    elif advice.exceeds:
        yield (
            f"WARNING: {together} connections are more than the {advice.available} that the server"
            " leaves to this role: lower max_size, or raise the server's limit"
        )
    else:
        yield f"the server leaves {advice.available} connections to this role: {together} fit"


def _about_overload(advice: Advice) -> Iterator[str]:
    """Yield what helps where more is requested than the pool serves."""
    recommended = advice.recommended or 1
    if advice.load >= advice.max_size > 0:
        yield f"OVERLOADED: the load is more than {advice.max_size} connections can serve"
    if advice.refused:
        yield f"{advice.refused} of {advice.requests} requests were refused"
    if advice.max_size and recommended <= advice.max_size:
        yield "  on average the load fits: ask for advice during a peak"
    elif advice.available is not None and recommended * advice.workers > advice.available:
        yield (
            f"  {advice.workers} x {recommended} connections are more than the server allows: use"
            " each connection for a shorter time"
        )
    else:
        yield f"  if the server has idle cores, more connections help: max_size={recommended}"
    if advice.overload == "refuse":
        helps = 'overload="refuse" keeps the waits of the others short'
    else:
        helps = 'set overload="refuse", which keeps the waits of the others short'
    yield f"  if the server is the limit, more connections do not help: {helps}"


def _describe(each: Expectation) -> str:
    if math.isinf(each.mean_wait):
        return f"{each.utilisation:.0%} in use: too few, the wait queue grows without limit"
    return (
        f"{each.utilisation:.0%} in use, {each.waits:.1%} of the requests wait;"
        f" mean wait {_time(each.mean_wait)}, p99 {_time(each.p99_wait)}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
