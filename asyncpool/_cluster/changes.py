"""Changes of a cluster: each is recorded as an event, and wakes those who wait for one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from asyncpool._core.events import Events, fields

logger = logging.getLogger("asyncpool")


class Changes:
    """The events of one cluster, and who waits for the next change.

    Args:
        name: the cluster's name.
        clock: returns the current instant.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.clock = clock
        self.events = Events()
        self._waiting: dict[asyncio.Future[None], None] = {}
        """In the order of arrival, in which they are woken."""

    def record(self, kind: str, text: str, level: int = logging.INFO, **facts: object) -> None:
        """Log an event and keep it for `explain()`."""
        self.events.note(self.clock(), kind, text, level)
        if logger.isEnabledFor(level):
            extra = fields(self.name, kind, **facts)
            logger.log(level, "cluster %r: %s", self.name, text, extra=extra, stacklevel=2)

    async def wait(self) -> None:
        """Wait for the next change."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            await future
        finally:
            self._waiting.pop(future, None)

    def wake(self) -> None:
        """Wake all who wait."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)

    def forget_waits(self) -> None:
        """Forget who waited on an event loop that has ended."""
        self._waiting.clear()
