"""How far one standby has replayed, for all reads that wait for it.

One task asks for all of them, so a host has one such question under way at a time, however many
reads wait. An answer holds for each of them, whenever it was asked for: what was replayed stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context

import psycopg

FIRST_PAUSE = 0.0005
LAST_PAUSE = 0.004
"""Seconds between two questions: the first pause, and the longest, to which it is doubled."""

Ask = Callable[[], Awaitable[int]]
"""Returns the position up to which the host has replayed."""
Wait = Callable[[int, float], Awaitable[None]]
"""Waits on the server, at most some seconds, until the host has replayed a position."""


class ReplayWatch:
    """The reads that wait until a host has replayed a position.

    Args:
        ask: asks the host.
        wait: waits on the server, which then is not asked again and again; None: it cannot.
    """

    def __init__(self, ask: Ask, wait: Wait | None = None) -> None:
        self._ask = ask
        self._wait = wait
        self._waiters: dict[asyncio.Future[bool], int] = {}
        """The positions that are waited for."""
        self._task: asyncio.Task[None] | None = None
        """The task that asks, while there are waiters."""
        self._pause = FIRST_PAUSE
        self.questions = 0
        """How often the host was asked."""

    async def reach(self, lsn: int, limit: float) -> bool:
        """Wait until the host has replayed a position.

        Args:
            lsn: the position.
            limit: seconds.

        Returns:
            False if it has not within that time, or could not be asked.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiters[future] = lsn
        self._pause = FIRST_PAUSE
        timer = loop.call_later(limit, _end, future)
        try:
            if self._task is None:
                # In a context of its own: the limits of one read are not those of the others.
                self._task = loop.create_task(
                    self._run(limit), name="asyncpool: replay", context=Context()
                )
            return await future
        finally:
            timer.cancel()
            del self._waiters[future]

    async def close(self) -> None:
        """End the task; those that wait get False."""
        if (task := self._task) is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})

    async def _run(self, limit: float) -> None:
        try:
            while self._open():
                self.questions += 1
                replayed = await self._ask()
                for future, lsn in self._open().items():
                    if lsn <= replayed:
                        future.set_result(True)
                if left := self._open():
                    await self._rest(min(left.values()), limit)
        except (psycopg.Error, TimeoutError):
            pass  # the pool of the host notes its errors
        finally:
            self._task = None
            for future in self._open():
                future.set_result(False)

    async def _rest(self, lsn: int, limit: float) -> None:
        if self._wait is not None:
            try:
                await self._wait(lsn, limit)
            except psycopg.Error:
                self._wait = None  # it is not as expected there: ask as on older servers
            else:
                return
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LAST_PAUSE)

    def _open(self) -> dict[asyncio.Future[bool], int]:
        return {future: lsn for future, lsn in self._waiters.items() if not future.done()}


def _end(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
