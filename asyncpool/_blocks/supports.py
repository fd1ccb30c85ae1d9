"""The part of the pool that blocks and one-shots use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from asyncpool._blocks.session import Session
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
    _autocommit_modes: dict[ACT, bool]
    """The autocommit mode to restore when a leased connection is released in the other mode."""
    _sessions: dict[object, Session[ACT]]
    """The active sessions, each under its task and under its connection."""

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

    def _acquire_now(self) -> ACT | None:
        """Acquire an idle connection, if there is one."""
        ...

    def _ensure_open(self) -> None: ...

    def _release_lease(
        self, conn: ACT, *, failing: bool, cleanup: Callable[[], Awaitable[object]] | None = None
    ) -> None: ...
