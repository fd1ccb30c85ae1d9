"""Lower bounds for an uncontended cycle: a deque in an async context manager."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType


class Bare:
    """An async context manager around a deque, written as a class."""

    __slots__ = ("_item", "_items")

    def __init__(self, items: deque[object]) -> None:
        self._items = items

    async def __aenter__(self) -> object:
        self._item = item = self._items.pop()
        return item

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._items.append(self._item)


class Shelf:
    """A deque of objects to borrow, by both kinds of context manager."""

    def __init__(self, size: int) -> None:
        self._items: deque[object] = deque(object() for _ in range(size))

    def bare(self) -> Bare:
        """Return the context manager written as a class."""
        return Bare(self._items)

    @asynccontextmanager
    async def generated(self) -> AsyncIterator[object]:
        """Borrow an object, by a `contextlib.asynccontextmanager`."""
        item = self._items.pop()
        try:
            yield item
        finally:
            self._items.append(item)
