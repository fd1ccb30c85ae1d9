"""The protocol of a driver: the operations on connections that the core needs.

The core depends on nothing else of a driver, so the simulator runs it with a fake driver on a
virtual clock. The protocol is private.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, TypeVar

C = TypeVar("C", bound=Hashable)


class Notify(Protocol):
    """The callback that reports failures of one connection."""

    def __call__(self, error: BaseException | None = None, *, lost: bool = True) -> None:
        """Report a lost connection or an error of a statement.

        Args:
            error: the error that the server sent, if any.
            lost: whether the connection is broken.
        """
        ...


class Driver(Protocol[C]):
    """A driver as the pool uses it. Any method may be cancelled at any of its awaits."""

    async def open(self) -> C:
        """Open a connection and configure it; it must be clean."""
        ...

    async def close(self, conn: C) -> None:
        """Close a connection in any state; return once the server has closed its side."""
        ...

    async def ping(self, conn: C) -> None:
        """Make one round trip; raise an error if the connection is broken."""
        ...

    async def reset(self, conn: C) -> None:
        """Make a connection clean, or raise an error; `is_clean` is not called afterwards."""
        ...

    def is_clean(self, conn: C) -> bool:
        """Whether the next request can use the connection without a reset; does no I/O."""
        ...

    def is_alive(self, conn: C) -> bool:
        """Whether the connection is not known to be broken; never blocks."""
        ...

    def watch(self, conn: C, notify: Notify) -> bool:
        """Call `notify` from the event loop when a connection is lost or a statement fails.

        Returns:
            False if a loss cannot be noticed; then the pool calls `is_alive` before each lease.
        """
        ...
