"""How far one standby has replayed, for all reads that wait for it.

One task asks for all of them, so a host has one such question under way at a time, however many
reads wait. An answer holds for each of them, whenever it was asked for: what was replayed stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from asyncpool._cluster.pools import PRIORITY, HostPool
from asyncpool._cluster.sight import number_of, text_of
from asyncpool._cluster.token import Token
from asyncpool._core.within import within
from asyncpool.errors import PoolError

REPLAYED = b"SELECT pg_catalog.pg_last_wal_replay_lsn()"
FOLLOWED = b"""\
SELECT pg_catalog.current_setting('server_version_num'),
  (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver),
  (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())"""
"""The query for the timeline that a standby follows. That of its last checkpoint may be an old one
for minutes; roles without the rights of pg_read_all_stats see no other."""

FIRST_PAUSE = 0.0005
LAST_PAUSE = 0.004
"""Seconds between two questions: the first pause, and the longest, to which it is doubled."""
LIMIT = 1.0
"""Seconds that a question may take."""
WAITS = 190000
"""The first version of a server that has WAIT FOR."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]


class Replay:
    """The position up to which one standby has replayed, and the reads that wait for more.

    Args:
        pool: the pool of the host.
        spawn: starts a background task.
    """

    def __init__(self, pool: HostPool[Any], spawn: Spawn) -> None:
        self.pool = pool
        self.timeline = 0
        """The latest timeline that the host was seen to follow; 0: it was not asked."""
        self.questions = 0
        """How often the host was asked for its position."""
        self._spawn = spawn
        self._waiting: dict[asyncio.Future[bool], Token] = {}
        """The reads that wait; they remove themselves."""
        self._home: asyncio.AbstractEventLoop | None = None
        """The event loop on which the task asks, while there are such reads."""
        self._pause = FIRST_PAUSE
        self._version = 0

    async def reach(self, token: Token, limit: float) -> bool:
        """Wait until the host has replayed a token.

        Args:
            token: the token.
            limit: seconds.

        Returns:
            False if it has not within that time, does not follow the token's timeline, or could not
            be asked.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if self._home is not loop:
            self._waiting.clear()  # those of a loop that has ended
        self._waiting[future] = token
        self._pause = FIRST_PAUSE
        timer = loop.call_later(limit, _end, future, False)
        try:
            if self._home is not loop:
                self._home = loop
                self._spawn(self._run(limit), "replay")
            return await future
        finally:
            timer.cancel()
            self._waiting.pop(future, None)

    async def _run(self, limit: float) -> None:
        """Ask until nobody waits."""
        try:
            while self._still_waiting():
                if any(each.timeline > self.timeline for each in self._still_waiting().values()):
                    await self._ask_for_timeline()
                    for future, token in self._still_waiting().items():
                        if token.timeline > self.timeline:
                            _end(future, False)
                replayed = await self._ask_for_position()
                for future, token in self._still_waiting().items():
                    if token.lsn <= replayed and token.timeline <= self.timeline:
                        _end(future, True)
                if left := self._still_waiting():
                    await self._rest(min(token.lsn for token in left.values()), limit)
        except (psycopg.Error, TimeoutError):
            pass  # the pool and the looks note what is wrong with the host
        finally:
            self._home = None
            for future in self._still_waiting():
                _end(future, False)

    async def _ask_for_position(self) -> int:
        self.questions += 1
        self.pool.looks += 1
        with within(priority=PRIORITY):
            row = await self.pool.fetchone(REPLAYED, timeout=LIMIT, row_factory=tuple_row)
        return number_of(row[0]) if row and row[0] else 0

    async def _ask_for_timeline(self) -> None:
        self.pool.looks += 1
        with within(priority=PRIORITY):
            row = await self.pool.fetchone(FOLLOWED, timeout=LIMIT, row_factory=tuple_row)
        self._version = int(row[0]) if row else 0
        self.timeline = max(self.timeline, *(int(each or 0) for each in (row or ())[1:]))

    async def _rest(self, lsn: int, limit: float) -> None:
        """Wait before the next question; on the server, if it can."""
        if self._version >= WAITS:
            milliseconds = max(int(limit * 1000), 1)
            command = f"WAIT FOR LSN '{text_of(lsn)}' WITH (TIMEOUT '{milliseconds}ms', NO_THROW)"
            self.pool.looks += 1
            try:
                await self.pool.execute(command.encode(), timeout=limit + LIMIT)
            except PoolError:
                raise
            except psycopg.Error:
                self._version = 0  # it is another command there: ask as on older servers
            else:
                return
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LAST_PAUSE)

    def _still_waiting(self) -> dict[asyncio.Future[bool], Token]:
        return {future: token for future, token in self._waiting.items() if not future.done()}


def _end(future: asyncio.Future[bool], outcome: bool) -> None:
    if not future.done():
        future.set_result(outcome)
