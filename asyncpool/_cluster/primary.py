"""Which host is the primary, and the pool for writes that follows it.

Of several hosts that claim to be the primary, the one on the highest timeline is. A host that is
down stays the primary until another one claims to be on a higher timeline. A claim on the same or a
lower one is no promotion: it is followed only where nothing speaks for another primary.
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
PROBATION = 10.0
"""Seconds without a primary after which a claim that is no promotion may be followed."""
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
        """The timeline of the primary, also of the last one while there is none; 0: any is new."""
        self.positions = Positions()
        """The positions of the primary at its last looks."""
        self._changes = changes
        self._hosts = hosts
        self._write: weakref.ref[WritePool[Any]] | None = None
        self._connected_to: str | None = None
        """The name of the host to which the write pool's connections go."""
        self._connected_timeline = 0
        """Its timeline when it was last seen as the primary."""
        self._lost_at = -math.inf
        """The instant since which no host is the primary, if none is."""
        self._rivals = frozenset[str]()
        """The names of hosts that were last seen to be primaries on one timeline."""

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
        hosts, current = list(self._hosts()), self.host
        if current is not None and current.role != "primary":
            text = f"host {current.name} is no longer the primary"
            self._changes.record("no primary", text, logging.WARNING, host=current.name)
            self.host = current = None
            self._lost_at = self._changes.clock()
        if current is None and not all(host.is_known for host in hosts):
            return  # one of the others may be a primary on a newer timeline
        claims = {
            host: host.sight.timeline
            for host in hosts
            if host.sight is not None and host.sight.is_primary and host.error is None
        }
        if current in claims:
            # It may have begun again, as after a restore.
            self.timeline = self._connected_timeline = claims[current]
        best = max(claims, key=lambda host: (claims[host], host is current), default=None)
        if best is None:
            return
        timeline = claims[best]
        self._warn_of_rivals([host.name for host in claims if claims[host] == timeline], timeline)
        if best is current or not self._is_followed(timeline, hosts):
            return
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

    def _is_followed(self, timeline: int, hosts: Iterable[Host]) -> bool:
        """Whether another host than the present primary is followed on a timeline."""
        if timeline > self.timeline:
            return True
        latest = self._changes.clock() - PROBATION
        if (current := self.host) is not None:
            # One slow look at the primary must not move the writes to another copy of it.
            is_gone = current.error is not None and current.down_since <= latest
            return timeline == self.timeline and is_gone
        # An older timeline may be that of an old primary, until the next one is promoted.
        all_answer = all(host.error is None for host in hosts)
        return timeline == self.timeline or (all_answer and self._lost_at <= latest)

    def _warn_of_rivals(self, names: list[str], timeline: int) -> None:
        if len(names) > 1 and self._rivals != frozenset(names):
            self._rivals = frozenset(names)
            text = f"hosts {' and '.join(names)} are primaries on the same timeline {timeline}:"
            text += " unless they are one server, stop one of them"
            self._changes.record("two primaries", text, logging.WARNING)

    def connect_now(self) -> None:
        """Let the pool for writes connect at once, because the primary answers again."""
        if (write := self._pool()) is not None:
            write.connect_now()

    def leave(self, host: Host) -> None:
        """Forget a host that is no longer in the list."""
        if self.host is host:
            self.host, self.timeline = None, 0

    def forget(self) -> None:
        """Begin again on another event loop."""
        self.host, self._connected_to = None, None
        self._lost_at = self._changes.clock()

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

    def _pool(self) -> WritePool[Any] | None:
        return None if self._write is None else self._write()
