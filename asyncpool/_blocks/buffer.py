"""A queue with a limit, of the items that a listener has read."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

LIMIT = 1000
"""Items from which on the writer is to wait; psycopg may already have some more."""


class Buffer(Generic[T]):
    """A queue from one task to others, which ends.

    A reader that is cancelled takes nothing.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._changed = asyncio.Event()
        """Set when there may be something for a reader that waits."""
        self._room = asyncio.Event()
        """Set while there are fewer items than the limit."""
        self._room.set()
        self.ended = False
        """Whether `end` was called; items that came before can still be taken."""
        self._error: BaseException | None = None
        """The error with which it has ended, if any."""

    def put(self, item: T) -> None:
        """Append an item, whatever the limit."""
        self._items.append(item)
        self._changed.set()
        if len(self._items) >= LIMIT:
            self._room.clear()

    @property
    def is_full(self) -> bool:
        """Whether the writer is to wait."""
        return not self._room.is_set()

    async def wait_for_room(self) -> None:
        """Wait until there are fewer items than the limit."""
        await self._room.wait()

    async def get(self) -> T:
        """Take the first item; wait until there is one.

        Raises:
            StopAsyncIteration: it has ended.
        """
        while not self._items:
            if self._error is not None:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        if len(self._items) < LIMIT:
            self._room.set()
        return item

    def end(self, error: BaseException | None = None) -> None:
        """End it: readers get the items before an error and then the error; without one, nothing.

        Only the first call has an effect.
        """
        if self.ended:
            return
        self.ended, self._error = True, error
        if error is None:
            self._items.clear()
        self._changed.set()
