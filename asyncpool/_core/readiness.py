"""Callers that wait until the pool has its connections, as at the start of an application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asyncpool._core.ledger import Ledger
from asyncpool._core.outage_controller import OutageController
from asyncpool._core.runtime import Runtime


@dataclass(eq=False, repr=False)
class Readiness:
    """Whether the connections of one pool are open, and who waits for that."""

    ledger: Ledger[Any]
    runtime: Runtime
    outages: OutageController[Any]
    """Says whether waiting is useless."""
    refill: Callable[[], None]
    """Opens the connections that are wanted."""
    _changed: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    """Set when a caller in `wait` may have nothing more to wait for."""
    callers = 0
    """The number of callers in `wait`."""
    _connects_succeeded = 0
    """The number of successful connects; only counted where idle connections are not kept."""

    async def wait(self) -> bool:
        """Wait until `min_size` connections are open; return False if waiting is useless.

        A connection that is being reset is open. Where idle connections are not kept, wait for one
        successful connect; at `max_size`, an open connection is enough.
        """
        ledger, before = self.ledger, self._connects_succeeded
        self.callers += 1
        try:
            while not (self._is_ready(before) or self.runtime.closed):
                self._changed.clear()
                ledger.trial_wanted = not ledger.settings.keeps_idle
                self.refill()
                if self.outages.is_unavailable():
                    return False
                if self._connects_succeeded == before:
                    await self._changed.wait()
            return True
        finally:
            self.callers -= 1
            if not self.callers:
                ledger.trial_wanted = False

    def note_connect(self) -> None:
        """Record a successful connect."""
        ledger = self.ledger
        if not ledger.settings.keeps_idle:
            self._connects_succeeded += 1
            ledger.trial_wanted = False
            self.wake()
        elif ledger.has_min_size:
            self.wake()

    def wake(self) -> None:
        """Wake the callers, so that they test again whether to wait."""
        self._changed.set()

    def _is_ready(self, connects_before: int) -> bool:
        ledger = self.ledger
        if ledger.settings.keeps_idle:
            return ledger.has_min_size
        used_up = ledger.remaining > ledger.opening and ledger.size >= ledger.settings.max_size
        return used_up or self._connects_succeeded != connects_before
