"""The blocks of `cluster.read`: each is a block of one host's pool, chosen when it is entered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

from asyncpool._cluster.choosing import Router
from asyncpool._cluster.host import Host
from asyncpool._cluster.pools import HostPool

T = TypeVar("T")


class ReadBlock(Generic[T]):
    """A block on a connection of a host that takes reads.

    Args:
        router: chooses the host.
        make: makes the block of a pool, with a time limit.
        timeout: seconds to wait for a host and a connection; None: the default.
        after: a token.
    """

    __slots__ = ("_after", "_block", "_host", "_make", "_router", "_timeout")

    def __init__(
        self,
        router: Router,
        make: Callable[[HostPool[Any], float | None], Any],
        timeout: float | None,
        after: str | None,
    ) -> None:
        self._router = router
        self._make = make
        self._timeout = timeout
        self._after = None if after is None else router.after(after)
        self._block: Any = None
        """The pool's block, while this one lasts."""

    async def __aenter__(self) -> T:
        if self._block is not None:
            msg = "this block is in use: call the pool's method again"
            raise RuntimeError(msg)
        block: Any = None

        async def enter(pool: HostPool[Any], timeout: float | None) -> T:
            nonlocal block
            block = self._make(pool, timeout)
            entered: T = await block.__aenter__()
            return entered

        self._block = enter  # the block is in use from here on
        try:
            after = self._after or self._router.after(None)
            self._host, entered = await self._router.place(enter, self._timeout, after)
        except BaseException:
            self._block = None
            raise
        self._block = block
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        block, self._block = self._block, None
        try:
            return bool(await block.__aexit__(kind, error, tb))
        finally:
            self._host.reads.under_way -= 1

    @property
    def host(self) -> Host:
        """The host of the block, while it lasts."""
        return self._host


class ReadSession(ReadBlock[T]):
    """A session: what its task reads inside runs on the same host and connection."""

    __slots__ = ("_task",)

    async def __aenter__(self) -> T:
        entered = await super().__aenter__()
        self._task = asyncio.current_task()
        self._router.sessions.setdefault(self._task, self._host)
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        try:
            return await super().__aexit__(kind, error, tb)
        finally:
            if not self.host.pool.in_session(self._task):
                self._router.sessions.pop(self._task, None)


class ReadAcquisition(ReadBlock[T]):
    """`read.acquire()`: await it, or use `async with`, which returns the connection at the end."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._acquire().__await__()

    async def _acquire(self) -> T:
        async def get(pool: HostPool[Any], timeout: float | None) -> T:
            conn: T = await self._make(pool, timeout)
            return conn

        host, conn = await self._router.place(
            get, self._timeout, self._after or self._router.after(None)
        )
        self._router.hold(conn, host)
        return conn
