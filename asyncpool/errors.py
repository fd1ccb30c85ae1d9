"""What can go wrong in the pool itself.

All are `psycopg.OperationalError`, so that code written for `psycopg_pool` catches them as before.
The message says what happened, the numbers, then what to do; the numbers are attributes too.
Errors of a query are psycopg's own and pass through untouched.
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
    """The base of every error that the pool raises on its own account."""


class PoolClosed(PoolError):
    """The pool is closed, or not open yet."""


class PoolTimeout(PoolError):
    """No connection within the time limit; the last connect error, if any, is the cause.

    Attributes:
        timeout: the limit that was up, in seconds.
        max_size: the most connections that the pool may have; 0 is no bound.
        size: those it had, in every state.
        leased: those that were lent out.
        waiting: requests in the line at that moment, this one included.
        longest_lease: the age of the longest lease in seconds, 0.0 when nothing is lent out.
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
    """No connection is to be had, and waiting longer would not help; the cause says why.

    Access is refused, such as for a wrong password or a database that does not exist, or connecting
    has failed for longer than `fail_fast_after`.

    Attributes:
        failures: connects that have failed in a row.
        lasts: seconds since the first of them.
    """

    def __init__(
        self, message: str, *, failures: int = 0, lasts: float = 0.0, **numbers: Any
    ) -> None:
        super().__init__(message, **numbers)
        self.failures = failures
        self.lasts = lasts


class PoolDeadlock(PoolTimeout):
    """Every connection is held by a task that waits for one more, so that none will be returned.

    The last of these tasks to wait gets this; as its block ends, the others go on. So does a task
    that would wait for its own stream(), COPY or notifies() on the connection of its session.

    Attributes:
        holders: where each of the tasks waits, by its name, innermost first.
    """

    def __init__(
        self, message: str, *, holders: dict[str, list[str]] | None = None, **numbers: Any
    ) -> None:
        super().__init__(message, **numbers)
        self.holders = holders or {}


class TooManyRequests(PoolError):
    """`max_waiting` requests wait in the line already.

    Attributes:
        waiting: the requests in the line.
        max_waiting: the limit.
    """

    def __init__(self, message: str, *, waiting: int = 0, max_waiting: int = 0) -> None:
        super().__init__(message)
        self.waiting = waiting
        self.max_waiting = max_waiting


class ReleaseError(PoolError, ValueError):
    """The connection is not one that this pool has lent out: foreign, or released already."""


class PoolWrongLoop(PoolError, RuntimeError):
    """The pool is open on another event loop, or no loop runs at all."""


class PoolForked(PoolError, RuntimeError):
    """The pool was opened before a fork, and this is the child."""
