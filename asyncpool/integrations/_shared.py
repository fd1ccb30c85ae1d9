"""Parts shared by the frameworks: the pool's lifetime in an app, and a request's transaction.

This module decides when a request's transaction begins and ends; it knows no framework.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from psycopg import AsyncConnection

from asyncpool import AsyncConnectionPool

Pool = AsyncConnectionPool[Any]
Block = AbstractAsyncContextManager[AsyncConnection[Any]]
Source = Pool | Callable[[], Pool]
"""A pool, or a callable that makes one at each start of the app."""
Details = Callable[[Any], bool | Awaitable[bool]]
"""The app's own authorisation: whether the client of a request may see the pools' reports."""


class RolledBack(Exception):
    """The reason to roll back a transaction that did not fail itself."""


def check_source(name: str, source: object) -> None:
    """Check the argument at the call, since the app would fail only at its start.

    Raises:
        TypeError: the source is neither a pool nor a callable.
    """
    if not (isinstance(source, AsyncConnectionPool) or callable(source)):
        msg = f"{name} must be an AsyncConnectionPool, or a callable that makes one: got {source!r}"
        raise TypeError(msg)


@asynccontextmanager
async def opened(source: Source, *, wait: bool, timeout: float) -> AsyncIterator[Pool]:
    """Keep a pool open for a block."""
    pool = source if isinstance(source, AsyncConnectionPool) else source()
    async with pool:
        if wait:
            await pool.wait(timeout)
        yield pool


@asynccontextmanager
async def serving(
    state: Any, name: str, source: Source, *, wait: bool, timeout: float
) -> AsyncIterator[None]:
    """Keep a pool open in an app's state; if the state has one, such as a test's, use that."""
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
    pools: Mapping[str, Pool], timeout: float, *, details: bool
) -> tuple[int, dict[str, Any]]:
    """Return an HTTP status and a body; the status is 503 if a pool is down.

    Args:
        pools: the pools by the names in the body.
        timeout: seconds for the ping of each.
        details: whether the body has a report of each pool, besides the status of all.
    """
    found = await asyncio.gather(*(pool.health(timeout) for pool in pools.values()))
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


def request_label(method: str, path: str, handler: object) -> str:
    """Return the label of a request, such as "GET /orders/{id} (shop.read_order)"."""
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    module = getattr(handler, "__module__", "")
    return f"{method} {path}" + ("" if handler is None else f" ({module}.{name})")


def check_status(roll_back_from: object) -> None:
    """Check the lowest status that rolls back.

    Raises:
        ValueError: it is not a number from 400 to 600; 600 means exceptions only.
    """
    if not isinstance(roll_back_from, int) or not 400 <= roll_back_from <= 600:
        msg = f"roll_back_from must be a status from 400 to 600, not {roll_back_from!r}"
        raise ValueError(msg)
