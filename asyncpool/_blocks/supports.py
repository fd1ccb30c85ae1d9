"""The part of the pool that blocks and one-shots use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from asyncpool._blocks.session import Session
from asyncpool._core.lease import Lease
from asyncpool._core.pool import Core
from asyncpool._psycopg.driver import ACT, PsycopgDriver

Exc = type[BaseException] | None


class SupportsBorrowing(Protocol[ACT]):
    """The part of the pool that blocks use."""

    close_returns: bool

    @property
    def name(self) -> str:
        """The pool's name."""
        ...

    _core: Core[ACT]
    _driver: PsycopgDriver[ACT]
    _sessions: dict[asyncio.Task[Any] | None, Session[ACT]]
    """The active sessions by their tasks."""

    async def getconn(self, timeout: float | None = None) -> ACT:
        """Acquire a connection."""
        ...

    async def _borrow_conn(self, timeout: float | None) -> ACT:
        """Acquire a connection for a block or a one-shot, through overridden methods if any."""
        ...

    async def _return_conn(
        self,
        conn: ACT,
        *,
        failing: bool,
        cleanup: Callable[[], Awaitable[object]] | None = None,
        as_is: bool = False,
    ) -> None:
        """Release such a connection; a background task runs `cleanup` before the reset."""
        ...

    def _acquire_now(self, lease: Lease) -> ACT | None:
        """Acquire an idle connection, if there is one."""
        ...

    def _session_of(self, conn: ACT) -> Session[ACT] | None:
        """Return the session that has leased a connection."""
        ...

    def _ensure_open(self) -> None: ...

    def _release_lease(
        self, conn: ACT, *, failing: bool, cleanup: Callable[[], Awaitable[object]] | None = None
    ) -> None: ...
