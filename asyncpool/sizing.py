"""How many connections a load needs: queueing theory over what a pool has measured.

The formulas are pure functions. What they are given is measured since the pool was opened; so a
load that comes in waves is to be asked about while it is high.
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

ASK_TIMEOUT = 1.0
"""Seconds for the server to say how many connections it has."""

# A superuser is bound by none of the limits but the first; the reserve of PostgreSQL 16 is for
# superusers and for members of one role.
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
    """What is to be expected of a pool of one size."""

    size: int
    """Connections."""
    utilisation: float
    """The share of them that is lent, from 0; at 1 and above the line grows without end."""
    waits: float
    """The share of requests that have to wait."""
    mean_wait: float
    """Seconds, of all requests, also those that need not wait."""
    p99_wait: float
    """Seconds that 99 of 100 requests wait at most."""


@dataclass(frozen=True, slots=True)
class Advice:
    """How large a pool should be, by what it has measured; `str()` says it in words.

    Durations are seconds. Requests are those that borrow a connection each; one-shots that share
    connections count by the time for which these were lent to them.
    """

    window: float
    """Since the pool was opened."""
    requests: int
    """How many have come in that time."""
    arrivals: float
    """Requests a second."""
    mean_use: float
    """For how long a connection is lent, on average; those lent now with their time until now."""
    use_p50: float
    """Of the last `samples` uses."""
    use_p99: float
    """Of the same."""
    samples: int
    shared_load: float
    """Connections that one-shots share, on average."""
    load: float
    """Connections needed at the least, on average: Little's law, arrivals times use."""
    max_size: int
    """What the pool has now."""
    expected: tuple[Expectation, ...]
    """At one connection less, now, and at one more."""
    utilisation: float
    """The share of the connections that was asked to be lent at most, on average."""
    recommended: int | None
    """The least size for that; None: nothing has been measured."""
    workers: int
    """Pools like this one on the same server."""
    available: int | None
    """Connections that the server leaves to this role in this database; None: not known."""
    unknown: str
    """Why that is not known; else empty."""

    @property
    def exceeds(self) -> bool:
        """Whether all the pools together may want more connections than there are."""
        return self.available is not None and self.max_size * self.workers > self.available

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def erlang_c(servers: int, load: float) -> float:
    """The share of requests that have to wait in an M/M/c queue: Erlang's second formula.

    Source: A. K. Erlang, "Solution of some Problems in the Theory of Probabilities of Significance
    in Automatic Telephone Exchanges", 1917, by way of his first formula's recurrence.

    Args:
        servers: connections, c.
        load: connections in use on average, were there enough of them: arrivals times use.

    Returns:
        From 0 to 1; 1 where the load is as large as `servers` or larger.
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
    """What an M/M/c queue makes of a load: random arrivals, use times spread exponentially.

    Uses that are spread less wait less, and arrivals in bursts wait more.

    Args:
        size: connections, at least 1.
        load: as for `erlang_c`.
        use: seconds of one use, on average.
    """
    waits = erlang_c(size, load)
    if load >= size:
        return Expectation(size, load / size, waits, math.inf, math.inf)
    pace = use / (size - load)
    return Expectation(
        size, load / size, waits, waits * pace, pace * max(math.log(max(waits, 1e-300) * 100), 0.0)
    )


def size_for(load: float, use: float, utilisation: float, p99_wait: float | None = None) -> int:
    """The least size at which no more than this share of it is lent, and no wait is longer."""
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
    """Measure, ask the server, and put it together; see `AsyncConnectionPool.advise`."""
    if count("workers", workers) == 0:
        msg = "workers must be at least 1: this pool is one of them"
        raise ValueError(msg)
    if not 0 < duration("utilisation", utilisation) < 1:
        msg = f"utilisation must be between 0 and 1: got {utilisation!r}"
        raise ValueError(msg)
    if p99_wait is not None:
        p99_wait = duration("p99_wait", p99_wait)
    stats, counters, now = snapshot(core), core.store.counters, core.store.time()
    lent = core.ledger.leased.values()
    ages = [now - entry.lent_at for entry in lent if not entry.shared]
    shared = counters.shared_time + sum(now - entry.lent_at for entry in lent if entry.shared)
    uses = counters.use.count + len(ages)
    window = max(now - core.opened_at, 0.0) if core.opened else 0.0
    requests = max(stats.requests - stats.requests_shared, uses)
    mean_use = (counters.use.sum + sum(ages)) / uses if uses else 0.0
    arrivals = requests / window if window else 0.0
    shared_load = shared / window if window else 0.0
    load = arrivals * mean_use + shared_load
    sizes = [size for size in (stats.max_size + step for step in (-1, 0, 1)) if size]
    use_p50, use_p99 = (counters.use.recent_quantile(share) for share in (0.5, 0.99))
    samples = len(counters.use.recent())
    available, unknown = await _available(ask)  # itself a request, so after all else
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
    )


async def _available(ask: Callable[..., Awaitable[Any]]) -> tuple[int | None, str]:
    """Connections that the server leaves to this role, or why that is not known."""
    try:
        said = json.loads(await ask(LIMITS, timeout=ASK_TIMEOUT, prepare=False))
        limits = [said["max_connections"]]
        if not said["superuser"]:
            kept = said["for_superusers"] + (0 if said["privileged"] else said["reserved"])
            limits[0] -= kept
            limits += [said[who] for who in ("role", "database") if said[who] >= 0]
    except (psycopg.Error, TypeError, ValueError, KeyError) as error:
        return None, (str(error) or type(error).__name__).splitlines()[0]
    return min(limits), ""


def _lines(advice: Advice) -> Iterator[str]:
    """An advice in words."""
    if not advice.load:
        yield f"no request in the {advice.window:.0f} s since the pool was opened: no advice yet"
    else:
        yield (
            f"{advice.requests} requests in {advice.window:.1f} s, {advice.arrivals:.4g} a second;"
            f" a use takes {_time(advice.mean_use)} on average"
            + (
                f" (p50 {_time(advice.use_p50)}, p99 {_time(advice.use_p99)} of the last"
                f" {advice.samples})"
                if advice.samples
                else ""
            )
        )
        yield f"connections needed on average: {advice.load:.2f}" + (
            f", {advice.shared_load:.2f} of them by one-shots that share" * bool(advice.shared_load)
        )
        for each in advice.expected:
            yield f"  with {each.size}: {_outlook(each)}" + " (now)" * (
                each.size == advice.max_size
            )
        yield f"recommended max_size: {advice.recommended}"
    together = f"{advice.workers} x {advice.max_size}"
    if advice.available is None:
        yield f"how many connections the server leaves to this role is not known: {advice.unknown}"
    elif advice.exceeds:
        yield (
            f"WARNING: {together} connections are more than the {advice.available} that the server"
            " leaves to this role: lower max_size, or raise the server's limit"
        )
    else:
        yield f"the server leaves {advice.available} connections to this role: {together} fit"


def _outlook(each: Expectation) -> str:
    if math.isinf(each.mean_wait):
        return f"{each.utilisation:.0%} lent: too few, the line grows without end"
    return (
        f"{each.utilisation:.0%} lent, {each.waits:.1%} of the requests wait;"
        f" a wait of {_time(each.mean_wait)} on average, p99 {_time(each.p99_wait)}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
