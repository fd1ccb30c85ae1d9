"""The errors of the pool itself.

All are `psycopg.OperationalError`, so that code written for psycopg_pool catches them. A message
says what happened, the numbers, then what to do; the numbers are attributes too. Errors of a query
are psycopg's own and pass through unchanged.
"""

from __future__ import annotations

from typing import Any

import psycopg

__all__ = [
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolForked",
    "PoolTimeout",
    "PoolUnavailable",
    "PoolWrongLoop",
    "ReleaseError",
    "TooManyRequests",
]


class PoolError(psycopg.OperationalError):
    """The base class of the pool's errors."""


class PoolClosed(PoolError):
    """The pool is closed or not open yet."""


class PoolTimeout(PoolError):
    """No connection or no answer within the time limit; a connect error, if any, is the cause.

    Attributes:
        timeout: the time limit in seconds.
        max_size: the most connections that the pool may have; 0: no limit.
        size: the connections that it had, in every state.
        leased: the leased connections.
        waiting: the requests in the wait queue, including this one.
        longest_lease: the age of the longest lease in seconds; 0.0 without a lease.
    """

    def __init__(
        self,
        message: str,
        *,
        timeout: float = 0.0,
        max_size: int = 0,
        size: int = 0,
        leased: int = 0,
        waiting: int = 0,
        longest_lease: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.max_size = max_size
        self.size = size
        self.leased = leased
        self.waiting = waiting
        self.longest_lease = longest_lease


class PoolUnavailable(PoolTimeout):
    """No connection is available, and waiting longer would not help; the cause says why.

    The server refuses access, as for a wrong password or a missing database, or connecting has
    been failing for longer than `fail_fast_after`.

    Attributes:
        failures: the consecutive failed connects.
        lasts: seconds since the first of them.
    """

    def __init__(
        self, message: str, *, failures: int = 0, lasts: float = 0.0, **numbers: Any
    ) -> None:
        super().__init__(message, **numbers)
        self.failures = failures
        self.lasts = lasts


class PoolDeadlock(PoolTimeout):
    """Each task that holds a connection waits for one more, so that none will be returned.

    The last of these tasks to wait gets this error; when its block ends, the others continue. A
    task also gets it if it would wait for its own stream(), COPY or notifies() on the connection
    of its session.

    Attributes:
        holders: by task name, the places where the task waits, innermost first.
    """

    def __init__(
        self, message: str, *, holders: dict[str, list[str]] | None = None, **numbers: Any
    ) -> None:
        super().__init__(message, **numbers)
        self.holders = holders or {}


class TooManyRequests(PoolError):
    """The request was refused, because waiting would be of no use.

    That is at once, but for a request that had joined the wait queue and would have been served too
    late to use the connection: it is refused when its turn comes.

    Attributes:
        waiting: the requests in the wait queue.
        max_waiting: the limit of the wait queue; 0: no limit.
        rule: why: "full": `max_waiting` requests wait already; "deadline": it could not have been
            served within its time limit; "patience": nor before its caller would have been
            cancelled, as those of other requests were; "standing": with `overload="refuse"`, the
            wait queue has stood for too long.
        expected_wait: the seconds that a request would wait now, on average; None: not known.
        retry_after: seconds after which a further attempt makes sense; None: not known.
    """

    def __init__(
        self,
        message: str,
        *,
        waiting: int = 0,
        max_waiting: int = 0,
        rule: str = "full",
        expected_wait: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.waiting = waiting
        self.max_waiting = max_waiting
        self.rule = rule
        self.expected_wait = expected_wait
        self.retry_after = retry_after


class ReleaseError(PoolError, ValueError):
    """The connection is not leased from this pool: it is foreign, or was released already."""


class PoolWrongLoop(PoolError, RuntimeError):
    """The pool is open on another event loop, or the connection belongs to one that has ended."""


class PoolForked(PoolError, RuntimeError):
    """The pool was opened before a fork, and this process is the child."""
