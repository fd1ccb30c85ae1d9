"""Parts shared by the frameworks: the pool's lifetime in an app, a request's transaction, the 503.

This module decides when a request's transaction begins and ends, and what a client is answered
that got no connection; it knows no framework.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from asyncpool import (
    AsyncConnectionPool,
    Cluster,
    ClusterHealth,
    HealthReport,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)

logger = logging.getLogger("asyncpool")

NoConnection = PoolTimeout | TooManyRequests
Pool = AsyncConnectionPool[Any]
Block = AbstractAsyncContextManager[AsyncConnection[Any]]
Source = Pool | Callable[[], Pool]
"""A pool, or a callable that makes one at each start of the app."""
Sources = Pool | Cluster[Any] | Callable[[], Pool | Cluster[Any]]
"""The same, or a cluster."""
MAX_LABEL = 200
"""Characters of a request's label in the log."""
LOG_FIELDS = {"pool_event": "busy"}
"""The additional fields of a log record, as the pool's own events have them."""
Details = Callable[[Any], bool | Awaitable[bool]]
"""The app's own authorisation: whether the client of a request may see the pools' reports."""


class RolledBack(Exception):
    """The reason to roll back a transaction that did not fail itself."""


def check_source(name: str, source: object, *kinds: type) -> None:
    """Check the argument at the call, since the app would fail only at its start.

    Args:
        name: the argument's name.
        source: its value.
        kinds: what it may be besides a callable; none: an AsyncConnectionPool.

    Raises:
        TypeError: the source is of no such kind, and no callable.
    """
    kinds = kinds or (AsyncConnectionPool,)
    if not (isinstance(source, kinds) or callable(source)):
        what = " or ".join(
            ("an " if kind.__name__[0] in "AEIOU" else "a ") + kind.__name__ for kind in kinds
        )
        msg = f"{name} must be {what}, or a callable that makes one: got {source!r}"
        raise TypeError(msg)


def write_of(kept: Pool | Cluster[Any]) -> Pool:
    """Return a pool, or the one for writes of a cluster."""
    return kept.write if isinstance(kept, Cluster) else kept


@asynccontextmanager
async def opened(source: Sources, *, wait: bool, timeout: float) -> AsyncIterator[Any]:
    """Keep a pool or a cluster open for a block."""
    pool = source if isinstance(source, AsyncConnectionPool | Cluster) else source()
    async with pool:
        if wait:
            await pool.wait(timeout)
        yield pool


@asynccontextmanager
async def serving(
    state: Any, name: str, source: Sources, *, wait: bool, timeout: float
) -> AsyncIterator[None]:
    """Keep a pool or cluster open in an app's state; if it has one, such as a test's, use that."""
    if getattr(state, name, None) is not None:
        yield
        return
    async with opened(source, wait=wait, timeout=timeout) as pool:
        setattr(state, name, pool)
        try:
            yield
        finally:
            delattr(state, name)


async def readiness(
    pools: Mapping[str, Pool | Cluster[Any]], timeout: float, *, details: bool
) -> tuple[int, dict[str, Any]]:
    """Return an HTTP status and a body; the status is 503 if a pool is down.

    Args:
        pools: the pools by the names in the body.
        timeout: seconds for the ping of each.
        details: whether the body has a report of each pool, besides the status of all.
    """
    found: list[HealthReport | ClusterHealth] = await asyncio.gather(
        *(pool.health(timeout) for pool in pools.values())
    )
    kinds = {report.status for report in found}
    worst = next((kind for kind in ("down", "degraded") if kind in kinds), "ok")
    body: dict[str, Any] = {"status": worst}
    if details:
        body["pools"] = {name: each.as_dict() for name, each in zip(pools, found, strict=True)}
    return (503 if worst == "down" else 200), body


async def is_shown(details: Details | None, request: Any) -> bool:
    """Ask the app whether the client of a request may see the reports."""
    if details is None:
        return False
    answer = details(request)
    return bool(await answer if isinstance(answer, Awaitable) else answer)


class LazyBlock:
    """One block of a request, entered when its connection is first requested.

    Args:
        make: a function that makes the block.
        roll_back_from: the lowest status of a response that rolls back.
    """

    def __init__(self, make: Callable[[], Block], roll_back_from: int = 500) -> None:
        self._make = make
        self._roll_back_from = roll_back_from
        self._lock = asyncio.Lock()
        self._block: Block | None = None
        self._conn: AsyncConnection[Any] | None = None
        """None before and after the block: a request may be referenced for long after it."""
        self._ended = False

    async def connection(self) -> AsyncConnection[Any]:
        """Return the block's connection; the first call enters the block.

        Raises:
            RuntimeError: the block has ended.
        """
        async with self._lock:
            if self._block is None and not self._ended:
                block = self._make()
                conn = await block.__aenter__()
                if self._ended:
                    await block.__aexit__(RolledBack, RolledBack(), None)
                else:
                    self._block, self._conn = block, conn
            if self._conn is None:
                msg = (
                    "the transaction of this request has ended with its response: later work, such"
                    " as a stream or a background task, must acquire a connection from the pool"
                )
                raise RuntimeError(msg)
            return self._conn

    async def answer(self, status: int) -> None:
        """Commit, or roll back if the response's status is `roll_back_from` or higher."""
        await self.end(RolledBack(f"status {status}") if status >= self._roll_back_from else None)

    async def end(self, error: BaseException | None) -> None:
        """Commit, or roll back for an error; a second call does nothing."""
        block, self._block, self._conn, self._ended = self._block, None, None, True
        if block is None:
            return
        if error is None:
            await block.__aexit__(None, None, None)
        else:
            await block.__aexit__(type(error), error, error.__traceback__)


@dataclass(slots=True)
class Logged:
    """The last line in the log about a route."""

    at: float
    """An instant of `time.monotonic`."""
    left_out: int = 0
    """The number of requests since then, which have no line."""


class BusyAnswers:
    """The answers for requests that got no connection; each route has a line in the log at times.

    Args:
        retry_after: the least seconds after which a client may retry.
        log_every: the least seconds between two lines about a route.

    Raises:
        ValueError: an argument is not a number of seconds.
    """

    def __init__(self, retry_after: float, log_every: float) -> None:
        check_seconds("retry_after", retry_after)
        check_seconds("log_every", log_every, math.inf)
        self._retry_after = retry_after
        self._log_every = log_every
        self._logged: dict[str, Logged] = {}
        """By route, of which an app has a limited number."""

    def answer(
        self, error: NoConnection, request: str, route: str
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the body and the headers of a 503, and log the error.

        Args:
            error: the reason why the request got no connection.
            request: the label of the request, for the log.
            route: the name of its route, which has nothing of the client's in it.
        """
        self._log(error, request, route)
        wanted = getattr(error, "retry_after", None) or 0.0
        seconds = math.ceil(max(self._retry_after, wanted))
        body = {"detail": "busy, try again", "reason": _reason(error), "retry_after": seconds}
        return body, {"Retry-After": str(seconds)}

    def _log(self, error: NoConnection, request: str, route: str) -> None:
        now = time.monotonic()
        last = self._logged.get(route)
        if last is not None and now - last.at < self._log_every:
            last.left_out += 1
            return
        self._logged[route] = Logged(now)
        # The path of a request may have line breaks in it, which would forge lines of a log.
        shown = "".join(each if each.isprintable() else "\ufffd" for each in request[:MAX_LABEL])
        more = ""
        if last is not None and last.left_out:
            more = f" ({last.left_out} more in the {now - last.at:.0f} s before)"
        logger.warning("%s was answered 503: %s%s", shown, error, more, extra=LOG_FIELDS)


def _reason(error: NoConnection) -> str:
    if isinstance(error, TooManyRequests):
        return "deadline" if error.rule == "deadline" else "overload"
    return "unavailable" if isinstance(error, PoolUnavailable) else "timeout"


def request_label(method: str, path: str, handler: object) -> str:
    """Return the label of a request, such as "GET /orders/{id} (shop.read_order)"."""
    return f"{method} {path}" + ("" if handler is None else f" ({handler_name(handler)})")


def handler_name(handler: object) -> str:
    """Return the name of a handler with its module, such as "shop.read_order"."""
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    return f"{getattr(handler, '__module__', '')}.{name}"


def check_seconds(name: str, value: float, most: float = 1e9) -> None:
    """Check a number of seconds.

    Raises:
        ValueError: it is not a number from 0 to `most`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most:
        msg = f"{name} must be a number of seconds, not {value!r}"
        raise ValueError(msg)


def check_status(roll_back_from: object) -> None:
    """Check the lowest status that rolls back.

    Raises:
        ValueError: it is not a number from 400 to 600; 600 means exceptions only.
    """
    if not isinstance(roll_back_from, int) or not 400 <= roll_back_from <= 600:
        msg = f"roll_back_from must be a status from 400 to 600, not {roll_back_from!r}"
        raise ValueError(msg)
