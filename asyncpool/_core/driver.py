"""The one seam to a driver: what the core must be able to do with a connection.

The core knows nothing else about it, which is why the simulator can run the very same core with a
fake connector on a virtual clock. The seam is private.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, TypeVar

C = TypeVar("C", bound=Hashable)


class Notify(Protocol):
    """What is to be called with news of a connection."""

    def __call__(self, error: BaseException | None = None, *, lost: bool = True) -> None:
        """It is lost, or a statement has failed on it.

        Args:
            error: what the server has said, if anything.
            lost: whether the connection is not alive any more.
        """
        ...


class Driver(Protocol[C]):
    """A driver, as the pool sees it. Any method may be cancelled, at any of its awaits."""

    async def open(self) -> C:
        """A new connection, configured and clean, or the error that prevented it."""
        ...

    async def close(self, conn: C) -> None:
        """Close for good, in whatever state; when this returns the server has let go of it."""
        ...

    async def ping(self, conn: C) -> None:
        """One round trip; raises when the connection is broken."""
        ...

    async def reset(self, conn: C) -> None:
        """Back to clean, or raise; afterwards `is_clean` is not asked again."""
        ...

    def is_clean(self, conn: C) -> bool:
        """Whether the next borrower can have it as it is, known with no I/O."""
        ...

    def is_alive(self, conn: C) -> bool:
        """Whether it is not known to be broken, with no I/O that waits."""
        ...

    def watch(self, conn: C, notify: Notify) -> bool:
        """Call `notify` from the event loop when a connection is lost, idle or not.

        And of errors of its statements. False where that cannot be seen: then `is_alive` has to be
        asked each time.
        """
        ...
