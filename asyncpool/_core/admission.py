"""Decides which requests may join the wait queue: those that can be served in time.

With `n` requests ahead, the wait of one more ends after `n + 1` hand-overs. If these come at random
at a rate `r`, that takes `(n + 1) / r` on average, and less than `(n + 1 + 2 * sqrt(n + 1)) / r` in
all but a few of a hundred cases. A request for which that is too long is refused at once: it would
wait for nothing, and those behind it with it. The order of the queue stays the same.

How long is too long follows from the request's own time limit `T`, which also has to suffice for
the use of the connection. Three mean uses are reserved for it, and no more than half of `T`; by
Little's law the mean use is `L / r`, with `L` connections leased. With `overload="refuse"` a queue
may also not stand for long: `1.5 * T` after it was last empty, newcomers may wait for `T / 10`. No
number here is a duration. What cannot be measured yet refuses nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from asyncpool._core.lines import Flow, Line
from asyncpool._core.service_rate import STEP, ServiceRate
from asyncpool._core.settings import UNBOUNDED

RESERVED_USES = 3.0
"""Mean uses for which time is reserved: an exponential use is shorter in 95 of 100 cases."""
RESERVED_SHARE = 0.5
"""The largest part of a time limit that is reserved."""
DRAIN = 1.5
"""The time limits that a queue may take to drain; a burst that can be served in time does."""
STANDING_SHARE = 0.1
"""The part of a time limit that a newcomer may wait in a queue that does not drain."""
MOST_LIMITS = 4.0
"""The time limits after which a refused request may be made again in any case."""
REMEMBERED_SHARE = 0.1
"""The part of a time limit for which a refusal is remembered."""
REMEMBERED = 32
"""The most time limits for which something is remembered."""
WINDOW_SHARE = 0.5
"""The part of a time limit over which the rate is measured."""


@dataclass(eq=False, slots=True)
class Refusal:
    """Why a request may not join the queue; durations are seconds."""

    rule: str
    """"deadline": it could not be served within its time limit; "patience": it could not be served
    before its caller is expected to give up, as others did; "standing": the queue does not drain;
    "full"."""
    expected_wait: float | None = None
    """The mean wait of a request that joined now; None: it is not known."""
    retry_after: float | None = None
    """A time after which the queue of now has been served: one to four time limits."""


FULL = Refusal("full")
"""The refusal where `max_waiting` requests wait already."""


@dataclass(eq=False, repr=False, slots=True)
class Decided:
    """The last decisions on requests with one time limit, which hold for the next ones with it.

    They hold for requests with neither a priority nor a flow, and no further deadline. A queue
    forgets them with each mark of its rate, when it is empty, when a connection is opened, and when
    a setting or the patience of callers changes.
    """

    room: int = 0
    """The length of the queue below which such a request may join."""
    refused_from: float = math.inf
    """The length of the queue from which such a request is refused."""
    until: float = -math.inf
    """The instant until which it is; later the rate is measured again, as it falls in a stall."""
    refusal: Refusal = FULL
    """Why it is refused."""


def judge(
    total: ServiceRate,
    flow: Flow[Any],
    ahead: int,
    time_limit: float,
    now: float,
    *,
    patience: float,
    leased: int,
    coming: int,
    refuses: bool,
) -> Refusal | int:
    """Decide whether a request may join a flow.

    Args:
        total: the rate of all hand-overs of the queue.
        flow: the flow.
        ahead: the number of waiters of its priority that would be served before it.
        time_limit: what is left of the request's own time limit.
        now: the current instant.
        patience: how long callers like this one wait, as far as is known.
        leased: the number of connections in use.
        coming: the number of connections that are being opened.
        refuses: whether a standing queue refuses too: `overload="refuse"`.

    Returns:
        A refusal; or the number of waiters ahead below which such a request may join now.
    """
    line = flow.line
    limit, rule = (patience, "patience") if patience < time_limit else (time_limit, "deadline")
    if limit == math.inf:
        return UNBOUNDED
    window = limit * WINDOW_SHARE
    rate, since = total.measure(window, now), total.since
    if not rate:
        return ahead + STEP
    in_use = leased or 1
    line.use = in_use / rate
    if flow.line.length:  # there is an order
        # Higher priorities and other flows will join meanwhile: the line's own rate and the flow's
        # say how often it has its turn.
        since = flow.since if flow.length else math.inf
        rate = min(line.rate.measure_or_bound(window, limit, now) or rate, rate)
        own = flow.rate.measure_or_bound(window, limit, now) if flow.length else 0.0
        if own and (flow.length + 1) * rate > (ahead + 1) * own:
            rate, ahead = own, flow.length
    if coming:  # they will do what the others do
        rate *= (in_use + coming) / in_use
    allowed = limit - reserve(line.use, limit)
    if refuses:
        drains = max(DRAIN * limit - (now - since), STANDING_SHARE * limit)
        if drains < allowed:
            allowed, rule = drains, "standing"
    # The largest `n` with `n + 2 * sqrt(n) <= allowed * rate` hand-overs.
    room = (math.sqrt(1 + allowed * rate) - 1) ** 2
    if ahead + 1 <= room:
        return int(room)
    expected = (ahead + 1) / rate
    return Refusal(rule, expected, retry_after(expected, limit))


def retry_after(expected_wait: float, limit: float) -> float:
    """Return when a refused request may be made again: no sooner than its time limit.

    After a stall the expected wait may be much longer than what becomes of it.
    """
    return max(limit, min(expected_wait, MOST_LIMITS * limit))


@dataclass(frozen=True, slots=True)
class QueuePace:
    """How a line waits and is served now; durations are seconds."""

    service_rate: float = 0.0
    """Hand-overs a second; 0.0: not known, or nobody waits."""
    expected_wait: float = 0.0
    """The mean wait of a request that joined the line's plain flow now; 0.0 likewise."""
    standing: float = 0.0
    """The time for which the line has not been empty."""
    patience: float = math.inf
    """The age at which callers were found to be cancelled; infinite: they are not."""


def pace(
    total: ServiceRate,
    line: Line[Any],
    ahead: int,
    time_limit: float,
    now: float,
    *,
    leased: int,
    coming: int,
) -> QueuePace:
    """Return how a line waits and is served; the arguments are those of `judge`."""
    patience = line.patience.limit
    if total.since == math.inf:
        return QueuePace(patience=patience)
    window = min(time_limit, patience) * WINDOW_SHARE
    rate = (line.rate.measure(window, now) if line.length else 0.0) or total.measure(window, now)
    expected = (ahead + 1) / rate if rate else 0.0
    in_use = max(leased, 1)
    expected *= in_use / (in_use + coming)
    return QueuePace(rate, expected, max(now - total.since, 0.0), patience)


def reserve(use: float, limit: float) -> float:
    """Return the part of a time limit that is reserved for the use of the connection."""
    return min(RESERVED_USES * use, RESERVED_SHARE * limit)
