"""`pool.listen()`: a block in which a task iterates over the notifications of some channels."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from asyncpool._blocks.borrowing import Borrowing
from asyncpool._blocks.listener import Listener
from asyncpool._blocks.supports import Exc
from asyncpool._core.stacks import capture
from asyncpool._psycopg.driver import ACT

T = TypeVar("T")


class SupportsListening(Borrowing[ACT]):
    """The part of the pool that these blocks use."""

    _listening: set[Notifications[Any]]
    """The blocks that have begun and not ended."""


class Notifications(Generic[T]):
    """The block of `pool.listen()`, and the iterator over its notifications.

    Several tasks may iterate: each notification goes to one of them. A wait for the next one may be
    cancelled and repeated, and loses nothing. The iteration ends with the block, or when the pool
    is closed; what was not read by then is dropped.
    """

    def __init__(
        self,
        pool: SupportsListening[Any],
        channels: tuple[str, ...],
        timeout: float | None,
        *,
        reports_gaps: bool,
    ) -> None:
        self.channels = channels
        """The names of the channels, each once."""
        self._pool = pool
        self._timeout = timeout
        self._listener = Listener(pool, channels, reports_gaps=reports_gaps)
        self._task: asyncio.Task[None] | None = None
        self._was_entered = False
        self._started: asyncio.Future[None] | None = None
        """Gets the outcome of the first subscription, while the block is being entered."""

    @property
    def connected(self) -> bool:
        """Whether a connection listens at this moment, as far as the pool knows."""
        return self._listener.is_listening

    async def __aenter__(self) -> Self:
        if self._was_entered:
            msg = "this block was entered before: call listen() again"
            raise RuntimeError(msg)
        pool = self._pool
        pool._ensure_open()
        pool._core.require_usable()
        self._listener.trace = capture(sys._getframe(1))
        self._was_entered = True
        self._started = started = asyncio.get_running_loop().create_future()
        pool._listening.add(self)
        try:
            name = f"listening on {', '.join(self.channels)}"
            work = self._listener.run(self._timeout, started)
            self._task = pool._core.runtime.tasks.spawn(work, name)
            await started
        except BaseException:
            started.cancel()  # else its error would be reported as never retrieved
            self._end()
            raise
        finally:
            self._started = None
            del started  # its error's traceback has this frame
        return self

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if not self._was_entered:
            msg = "iterate inside of the block: `async with pool.listen(...) as notifications`"
            raise RuntimeError(msg)
        return cast("T", await self._listener.buffer.get())

    def _end(self) -> None:
        """End the iteration; the pool's task returns the connection."""
        self._pool._listening.discard(self)
        self._listener.buffer.end()
        if self._started is not None and not self._started.done():
            self._started.set_exception(self._pool._core.errors.closed())
        if self._task is not None:
            with suppress(RuntimeError):  # its event loop is closed
                self._task.cancel()
