"""Which key has which connection: one that is asked for by a key stays that key's until returned.

It lends nothing itself. A key has a connection for one lease, known by its number: whichever way
that has ended, the key is free again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic

from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import ReleaseError


class Keys(Generic[ACT]):
    """The keys of one pool.

    Args:
        core: who lends.
    """

    def __init__(self, core: Core[ACT]) -> None:
        self.held: dict[Hashable, tuple[ACT, int]] = {}
        """The connection of each key, and which of its leases is the key's."""
        self._core = core
        self._asking: dict[Hashable, asyncio.Future[None]] = {}
        """The keys for which somebody waits in the line; told when that has ended, either way."""

    async def borrow(
        self, key: Hashable, timeout: float | None, lend: Callable[[float], Awaitable[ACT]]
    ) -> ACT:
        """The connection of a key, or the next that `lend` gives within `timeout` seconds.

        Whoever asks for a key while another waits for its connection waits for what comes of that.
        """
        _require_hashable(key)
        core = self._core
        limit = core.settings.timeout if timeout is None else duration("timeout", timeout)
        left, deadline = limit, core.store.time() + limit
        while (conn := self.find(key)) is None:
            if (asking := self._asking.get(key)) is None:
                return await self._ask(key, lend(left))
            if left <= 0:
                why = f"another task has asked for one by the key {key!r}, and waits"
                raise core.errors.timed_out(limit, why)
            await asyncio.wait({asking}, timeout=None if left == math.inf else left)
            left = max(deadline - core.store.time(), 0.0)
        return conn

    def find(self, key: Hashable) -> ACT | None:
        """The connection that a key has now."""
        conn, number = self.held.get(key, (None, 0))
        return conn if conn is not None and self._core.lease_number(conn) == number else None

    def require(self, key: Hashable, conn: object) -> None:
        """Raise ReleaseError unless the key has that very connection."""
        _require_hashable(key)
        if (held := self.find(key)) is not conn:
            has = "has no connection" if held is None else f"has {held!r}"
            pool = self._core.settings.name
            msg = f"pool {pool!r} cannot take back {conn!r} by the key {key!r}, which {has}"
            raise ReleaseError(msg)

    def forget(self, conn: object) -> None:
        """The connection was returned: its key is free."""
        for key in [key for key, (held, _) in self.held.items() if held is conn]:
            del self.held[key]

    async def _ask(self, key: Hashable, lent: Awaitable[ACT]) -> ACT:
        self._asking[key] = asking = asyncio.get_running_loop().create_future()
        try:
            conn = await lent
            self.held[key] = conn, self._core.lease_number(conn)
        finally:
            del self._asking[key]
            if not asking.get_loop().is_closed():
                asking.set_result(None)
        return conn


def _require_hashable(key: Any) -> None:
    try:
        hash(key)
    except TypeError:
        msg = f"key must be hashable, not {key!r}"
        raise TypeError(msg) from None
