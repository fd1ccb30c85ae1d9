"""`within`: a deadline, a priority and a flow for all that a task borrows in a block.

It is looked up only when a request has to wait: an idle connection is leased without it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from asyncpool._core.lines import Line
from asyncpool._core.runtime import clock_of_thread
from asyncpool._core.settings import duration, whole
from asyncpool._core.waiter import Waiter


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of all requests of a context."""

    deadline: float = math.inf
    """An instant of the event loop's clock."""
    priority: int = 0
    flow: Hashable = None


NO_LIMITS = Limits()
_LIMITS: ContextVar[Limits] = ContextVar("asyncpool_within", default=NO_LIMITS)
current_limits = _LIMITS.get
"""Return the limits of the running code."""


def apply_limits(waiter: Waiter[Any], line: Line[Any]) -> None:
    """Apply the limits of the running code to a new waiter.

    Args:
        waiter: the waiter, which has not joined its queue yet.
        line: the line of priority 0 of that queue; it has to look for waiters that are too late.
    """
    limits = current_limits()
    if limits.deadline != math.inf:
        waiter.useful_until = limits.deadline
        waiter.deadline = min(waiter.deadline, limits.deadline)
        line.may_be_late = True
    if limits.priority or limits.flow is not None:
        waiter.place = limits.priority, limits.flow


class within:  # noqa: N801 - used like a function
    """Limit the time of all that the current task borrows in a `with` block.

    The pool cannot see the deadline of an `asyncio.timeout`; it can see this one. A request that
    could not be served and used before the deadline is refused at once with `TooManyRequests`, and
    a wait ends at the deadline with `PoolTimeout`. It is then not judged by how long other callers
    wait before they are cancelled. Nothing is cancelled: work that has begun goes on. Tasks that
    are created in the block have its limits too. Blocks nest: the earliest deadline holds, and what
    is not given is that of the surrounding block.

    Args:
        seconds: the time from now until the deadline; None: no further deadline.
        priority: of the requests that wait, those with the highest priority are served first; 0
            without a surrounding block.
        flow: of the requests with the same priority, flows such as tenants take turns, and each is
            refused by its own place in its turn; None without a surrounding block.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """

    __slots__ = ("_flow", "_priority", "_seconds", "_token")

    def __init__(
        self,
        seconds: float | None = None,
        *,
        priority: int | None = None,
        flow: Hashable = None,
    ) -> None:
        self._seconds = None if seconds is None else duration("seconds", seconds)
        self._priority = None if priority is None else whole("priority", priority)
        try:
            hash(flow)
        except TypeError:
            msg = f"flow must be hashable, not {flow!r}"
            raise TypeError(msg) from None
        self._flow = flow
        self._token: Token[Limits] | None = None

    def __enter__(self) -> Self:
        if self._token is not None:
            msg = "this block was entered before: call within() again"
            raise RuntimeError(msg)
        outer, deadline = current_limits(), math.inf
        if self._seconds is not None and self._seconds != math.inf:
            deadline = clock_of_thread()() + self._seconds
        limits = Limits(
            min(deadline, outer.deadline),
            outer.priority if self._priority is None else self._priority,
            outer.flow if self._flow is None else self._flow,
        )
        self._token = _LIMITS.set(limits)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._token is not None:
            with suppress(ValueError):  # the end of an async generator may run in another context
                _LIMITS.reset(self._token)
