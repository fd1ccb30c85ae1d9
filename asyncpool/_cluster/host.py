"""The state of one host of a cluster. It decides nothing about other hosts."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from asyncpool._cluster.sight import Sight, text_of
from asyncpool.faults import Fault

if TYPE_CHECKING:
    import anyio

    from asyncpool._cluster.addresses import Address
    from asyncpool._cluster.pools import HostPool

Role = Literal["primary", "standby"]


@dataclass(slots=True)
class Reads:
    """The reads on one host."""

    under_way: int = 0
    """Those that wait or run there."""
    held: int = 0
    """Those of them that are connections borrowed without a block."""
    scopes: set[anyio.CancelScope] = field(default_factory=set)
    """The scopes of those that are run elsewhere as soon as the host is down."""


class Host:
    """One host: its pool, what the last looks have found, and what runs there."""

    __slots__ = (
        "address",
        "current_at",
        "down_since",
        "drained",
        "error",
        "fault",
        "lag",
        "looked_from",
        "missed",
        "pool",
        "reads",
        "reason",
        "sight",
        "silent_since",
        "trouble",
    )

    def __init__(self, address: Address, pool: HostPool[Any]) -> None:
        self.address = address
        self.pool = pool
        self.drained = False
        """Whether the application has taken it out of service."""
        self.missed = 0
        """How many of the last lists of hosts, one after another, lacked it."""
        self.forget()

    def forget(self) -> None:
        """Begin as a host that was never looked at."""
        self.trouble = asyncio.Event()
        """Set when something has failed there, so that the next look is due at once."""
        self.looked_from = -math.inf
        """When the last look that has ended was begun, however it ended."""
        self.sight: Sight | None = None
        """The last look that was answered; it may be old."""
        self.error: str | None = None
        """Why it cannot be reached; None: it can, or was not looked at yet."""
        self.down_since = 0.0
        """The instant since which it is down, if it is."""
        self.fault: Fault | None = None
        """The fault of the last failed connect."""
        self.silent_since: float | None = None
        """The first of the last looks for which no connection came free while nothing else was
        served either; None: the last look was answered or failed."""
        self.current_at = -math.inf
        """When it was last seen to have replayed all."""
        self.lag = math.inf
        """Seconds that it lags; infinite: not known."""
        self.reason = "it was not looked at yet"
        """Why it takes no reads; empty: it takes some."""
        self.reads = Reads()

    @property
    def name(self) -> str:
        """The name by which it is shown."""
        return self.address.name

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which `drain` and `resume` find the host."""
        return self.name, self.address.host, self.address.hostaddr or self.name

    @property
    def is_known(self) -> bool:
        """Whether a look has ended, however it did."""
        return not (self.sight is None and self.error is None and self.silent_since is None)

    @property
    def reachable(self) -> bool:
        """Whether the last look that reached a verdict was answered."""
        return self.sight is not None and self.error is None

    @property
    def role(self) -> Role | None:
        """The role at the last look that was answered; None: there was none."""
        if self.sight is None:
            return None
        return "primary" if self.sight.is_primary else "standby"

    @property
    def replayed(self) -> str | None:
        """The position of the log that it has replayed, or flushed as a primary."""
        return None if self.sight is None else text_of(self.sight.position)

    def leave(self, why: str) -> None:
        """Let the reads that wait here move to another host."""
        self.pool.dismiss_waiting(why)

    def cancel_reads(self) -> None:
        """Let the reads that run here, and may be run elsewhere, do so: the host is down."""
        for scope in list(self.reads.scopes):
            scope.cancel()
