"""Which host is the primary, and the pool for writes that follows it.

Of several hosts that claim to be the primary, the one on the highest timeline is. A host that is
down stays the primary until another one claims to be on a higher timeline. So a promotion moves the
writes, and neither a slow look nor a list that lacks a host for a moment does.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import psycopg
from psycopg.conninfo import make_conninfo

from asyncpool._cluster.changes import Changes
from asyncpool._cluster.host import Host
from asyncpool._cluster.pools import WritePool
from asyncpool._cluster.sight import Positions
from asyncpool.faults import Fault

PATIENCE = 1.0
"""Seconds that a connect waits for a primary. Then it fails, so that errors and `explain()` have
the reason; the pool tries again, at once when there is a primary."""
GONE = 30.0
"""Seconds after which a primary that has left the list may be followed by one on an older timeline:
a list may lack a host for a moment."""
READ_WRITE = "primary" if psycopg.pq.version() >= 140000 else "read-write"
"""So that a connect to a host that was demoted meanwhile fails."""


class Primary:
    """The primary of one cluster.

    Args:
        changes: the events, and the waits for a primary.
        hosts: returns the hosts.
    """

    def __init__(self, changes: Changes, hosts: Callable[[], Iterable[Host]]) -> None:
        self.host: Host | None = None
        """The primary, also while it is down; None: none was found, or it is a standby now."""
        self.timeline = 0
        """The highest timeline of a primary."""
        self.positions = Positions()
        """The positions of the primary at its last looks."""
        self._changes = changes
        self._hosts = hosts
        self._write: weakref.ref[WritePool[Any]] | None = None
        self._left_at = math.inf
        """When the primary has left the list; infinite: it has not."""
        self._connected_to: str | None = None
        """The name of the host to which the write pool's connections go."""
        self._connected_timeline = 0
        """Its timeline when it was found."""

    def serve(self, write: WritePool[Any]) -> None:
        """Set the pool that follows the primary."""
        self._write = weakref.ref(write)

    def choose(self) -> None:
        """Decide anew which host is the primary; move the pool for writes to a new one."""
        before = self.host
        self._choose()
        if self.host is not before:
            self.positions.forget()
        if self.host is not None and self.host.sight is not None:
            self.positions.note(self.host.sight)

    def _choose(self) -> None:
        current = self.host
        if current is not None and current.role != "primary":
            text = f"host {current.name} is no longer the primary"
            self._changes.record("no primary", text, logging.WARNING, host=current.name)
            self.host = current = None
        claims = [
            (host.sight.timeline, host)
            for host in self._hosts()
            if host.sight is not None and host.sight.is_primary and host.error is None
        ]
        if not self.timeline and not all(host.is_known for host in self._hosts()):
            return  # one of the others may be a primary on a newer timeline
        timeline, best = max(claims, key=lambda each: each[0], default=(0, None))
        if best is None:
            return
        if best is current:
            self.timeline = timeline  # it may have begun again, as after a restore
            return
        if timeline < self.timeline and not self._is_long_gone():
            return
        if current is not None and timeline <= self.timeline:
            return
        self._left_at = math.inf
        previous, before = self._connected_to, self._connected_timeline
        self.host = best
        self._connected_to = best.name
        self.timeline = self._connected_timeline = timeline
        level = logging.INFO if previous is None else logging.WARNING
        text = f"host {best.name} is the primary, on timeline {timeline}"
        self._changes.record("primary", text, level, host=best.name, timeline=timeline)
        if previous in (None, best.name):
            self.connect_now()
        elif (write := self._pool()) is not None:
            write.move(cut=timeline > before)

    def connect_now(self) -> None:
        """Let the pool for writes connect at once, because the primary answers again."""
        if (write := self._pool()) is not None:
            write.connect_now()

    def leave(self, host: Host) -> None:
        """Forget a host that is no longer in the list."""
        if self.host is host:
            self.host, self._left_at = None, self._changes.clock()

    def forget(self) -> None:
        """Begin again on another event loop."""
        self.host, self._connected_to = None, None

    async def conninfo(self) -> str:
        """Return the connection string of the primary, and wait some seconds for one.

        Raises:
            psycopg.OperationalError: no host was the primary in time, or all refuse access.
        """
        deadline = self._changes.clock() + PATIENCE
        while (primary := self.host) is None:
            hosts = list(self._hosts())
            refused = bool(hosts) and all(each.fault is Fault.ACCESS for each in hosts)
            left = deadline - self._changes.clock()
            if refused or left <= 0:
                said = self.describe()
                # Without libpq's mark, unless all refuse access: then requests fail at once.
                said = said if refused else said.replace("FATAL:  ", "")
                msg = f"no host of cluster {self._changes.name!r} is the primary: {said}"
                raise psycopg.OperationalError(msg)
            with anyio.move_on_after(left):
                await self._changes.wait()
        return make_conninfo(primary.address.conninfo, target_session_attrs=READ_WRITE)

    def describe(self) -> str:
        """Return the role or fault of each host, as one text."""
        said = [
            f"{host.name}: "
            + (f"it is down: {host.error}" if host.error else f"it is a {host.role or 'stranger'}")
            for host in self._hosts()
        ]
        return "; ".join(said) or "no host is known"

    def _is_long_gone(self) -> bool:
        """Whether the host on the highest timeline left the list, and did not return for long."""
        return self._changes.clock() - self._left_at >= GONE

    def _pool(self) -> WritePool[Any] | None:
        return None if self._write is None else self._write()
