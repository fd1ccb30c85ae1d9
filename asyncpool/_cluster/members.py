"""The hosts of a cluster: which one is the primary, and which ones take reads.

All is decided here, synchronously, after each look. The watch brings the looks, the router takes a
host, and requests for which there is none wait here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import psycopg
from psycopg.conninfo import make_conninfo

from asyncpool._cluster.addresses import Address
from asyncpool._cluster.host import Host
from asyncpool._cluster.pools import HostDown, HostPool, WritePool
from asyncpool._cluster.sight import Sight, lag_of
from asyncpool._core.events import Events, fields
from asyncpool._core.settings import sizes
from asyncpool.faults import Fault

logger = logging.getLogger("asyncpool")

PATIENCE = 5.0
"""Seconds that a connect waits for a primary; the pool then tries again."""
READ_WRITE = "primary" if psycopg.pq.version() >= 140000 else "read-write"
"""So that a connect to a host that was demoted meanwhile fails."""
SILENT = 1.5
"""Seconds without a free connection or an answer after which a host gets no more reads, if others
take them."""


class Members:
    """The hosts of one cluster.

    Args:
        name: the cluster's name.
        make_pool: makes the pool for an address; the second argument is called in trouble.
        min_size, max_size: those of each pool.
        max_lag: seconds that a standby may lag; infinite: any.
        read_from_primary: whether the primary takes reads beside standbys.
        clock: returns the current instant.
    """

    def __init__(
        self,
        name: str,
        make_pool: Callable[[Address, Callable[[], None]], HostPool[Any]],
        *,
        min_size: int,
        max_size: int | None,
        max_lag: float,
        read_from_primary: bool,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.max_lag = max_lag
        self.read_from_primary = read_from_primary
        self.events = Events()
        self.hosts: dict[str, Host] = {}
        """By name, in the order of the connection string."""
        self.primary: Host | None = None
        """The host that is the primary, also while it is down; None: none was found, or it is a
        standby now."""
        self.timeline = 0
        """The highest timeline of a primary."""
        self.readable: list[Host] = []
        """The hosts that take reads, the least recently chosen first."""
        self.on_leave: Callable[[Host], None] = lambda _: None
        """Called with a host that is no longer in the list."""
        self._make_pool = make_pool
        self._min_size, self._max_size = sizes(min_size, max_size)
        self._clock = clock
        self._write: weakref.ref[WritePool[Any]] | None = None
        self._connected_to: Host | None = None
        """The host to which the write pool's connections go."""
        self._waiting: set[asyncio.Future[None]] = set()

    def serve(self, write: WritePool[Any]) -> None:
        """Set the pool that follows the primary."""
        self._write = weakref.ref(write)

    # The list

    def set_addresses(self, addresses: list[Address]) -> list[Host]:
        """Change the list of hosts; return the new ones."""
        before = self.hosts
        names = {each.name: each for each in addresses}
        self.hosts = {}
        added = []
        for name, address in names.items():
            host = before.get(name)
            if host is not None and host.address != address:
                host.address = address
                host.pool.conninfo = address.conninfo
            if host is None:
                pool = self._make_pool(address, partial(self.suspect, name))
                host = Host(address, pool)
                added.append(host)
                if before:
                    self.record("host added", f"host {name} was added", host=name)
            self.hosts[name] = host
        for name, host in before.items():
            if name not in self.hosts:
                self.record("host removed", f"host {name} is no longer in the list", host=name)
                host.reason = "it is no longer in the list"
                if self.primary is host:
                    self.primary, self.timeline = None, 0
                host.leave(host.reason)
                self.on_leave(host)
        self.decide()
        return added

    def find(self, name: str) -> Host:
        """Return the host of a name such as "db1:5432", or "db1" if only one host has it.

        Raises:
            TypeError: the name is not a str.
            ValueError: no host, or more than one, has the name.
        """
        if not isinstance(name, str):
            msg = f"host must be a str such as 'db1:5432', not {name!r}"
            raise TypeError(msg)
        found = [each for each in self.hosts.values() if name in (each.name, each.address.host)]
        exact = [each for each in found if each.name == name] or found
        if len(exact) == 1:
            return exact[0]
        known = ", ".join(self.hosts) or "none"
        what = f"{len(exact)} hosts have the name" if exact else "no host has the name"
        msg = f"{what} {name!r}: the hosts are {known}"
        raise ValueError(msg)

    # Looks

    def note_sight(self, host: Host, sight: Sight) -> None:
        """Note an answered look."""
        before, was_down = host.role, host.error is not None
        host.sight, host.error, host.fault, host.silent_since = sight, None, None, None
        if was_down:
            self.record("host up", f"host {host.name} answers, as {host.role}", host=host.name)
        elif before is None:
            self.record("host found", f"host {host.name} is a {host.role}", host=host.name)
        if before not in (None, host.role):
            text = f"host {host.name} was a {before} and is a {host.role}"
            self.record("role", text, logging.WARNING, host=host.name, role=host.role)
        self.decide()
        if was_down and host is self.primary and (write := self._write_pool()) is not None:
            write.connect_now()

    def note_down(self, host: Host, why: HostDown) -> None:
        """Note a look that has failed."""
        if host.error is None:
            text = f"host {host.name} is down: {why}"
            self.record("host down", text, logging.WARNING, host=host.name)
            host.down_since = self._clock()
        host.error, host.fault, host.silent_since = str(why) or "unknown", why.fault, None
        self.decide()

    def note_busy(self, host: Host, since: float, *, serves: bool) -> None:
        """Note a look for which no connection came free.

        Args:
            host: the host.
            since: when the look began.
            serves: whether the host served other requests meanwhile.
        """
        host.silent_since = None if serves else host.silent_since or since
        self.decide()

    def suspect(self, name: str) -> None:
        """Look at a host soon, since something has failed there; note at once if it is down."""
        host = self.hosts.get(name)
        if host is not None and host.pool.is_open:
            host.trouble.set()
            # Later, because the pool has not noted the failure yet.
            asyncio.get_running_loop().call_soon(self._check, host)

    def set_drained(self, host: Host, *, drained: bool) -> None:
        """Take a host out of service, or put it back."""
        if host.drained != drained:
            host.drained = drained
            what = ("drained", "takes no reads") if drained else ("resumed", "may take reads")
            self.record(what[0], f"host {host.name} {what[1]}: {what[0]}", host=host.name)
            self.decide()
            if drained:
                host.pool.replace_all()
            self._wake()

    # Decisions

    def decide(self) -> None:
        """Decide anew which host is the primary and which hosts take reads."""
        self._choose_primary()
        primary = self.primary.sight if self.primary is not None else None
        now, hosts = self._clock(), list(self.hosts.values())
        for host in hosts:
            if host.sight is not None and host.error is None:
                host.lag = lag_of(host.sight, primary, host.current_at)
                if not host.lag:
                    host.current_at = host.sight.at
        reasons = {host: self._reason(host) for host in hosts}
        # While a host was not looked at yet, a standby may be found.
        if not any(not reason for reason in reasons.values()) and all(
            host.is_known for host in hosts
        ):
            for host in hosts:
                if host is self.primary and not self._fault_of(host):
                    reasons[host] = ""
        open_to = [host for host in hosts if not reasons[host]]
        silent = [host for host in open_to if self._is_silent(host, now)]
        if len(silent) < len(open_to):
            for host in silent:
                reasons[host] = "no connection came free, and nothing was served"
        left = [host for host in hosts if reasons[host] and not host.reason]
        for host in hosts:
            self._note_reason(host, reasons[host])
        kept = [each for each in self.readable if each in reasons and not reasons[each]]
        self.readable = kept + [each for each in hosts if not reasons[each] and each not in kept]
        for host in hosts:
            takes_some = not reasons[host] or (host.role == "standby" and not host.drained)
            most = self._max_size
            host.pool.set_sizes(max(1, self._min_size) if takes_some else 1, most)
        for host in left:
            host.leave(host.reason)
        self._wake()

    def describe(self) -> str:
        """Return why each host takes no reads, as one text."""
        if not self.hosts:
            return "no host is known"
        return "; ".join(
            f"{each.name}: {each.reason or 'it takes reads'}" for each in self.hosts.values()
        )

    def describe_all(self) -> str:
        """Return the role and state of each host, as one text."""
        return (
            "; ".join(
                f"{host.name}: {self._fault_of(host) or 'it is a ' + str(host.role)}"
                for host in self.hosts.values()
            )
            or "no host is known"
        )

    def _reason(self, host: Host) -> str:
        """Return why a host takes no reads, whatever the others do; empty: it may take some."""
        if reason := self._fault_of(host):
            return reason
        if host.role == "primary":
            if host is not self.primary:
                return f"it is a primary on an older timeline than {self.timeline}"
            return "" if self.read_from_primary else "it is the primary"
        if host.lag > self.max_lag:
            lag = "an unknown time" if host.lag == math.inf else f"{host.lag:.1f} s"
            return f"it lags {lag} behind (max_lag={self.max_lag:g})"
        return ""

    @staticmethod
    def _fault_of(host: Host) -> str:
        if host.drained:
            return "it is drained"
        if host.error is not None:
            return f"it is down: {host.error}"
        return "" if host.sight is not None else "it was not looked at yet"

    @staticmethod
    def _is_silent(host: Host, now: float) -> bool:
        return host.silent_since is not None and now - host.silent_since >= SILENT

    def _note_reason(self, host: Host, reason: str) -> None:
        lags = "it lags"
        if reason.startswith(lags) and not host.reason.startswith(lags):
            text = f"host {host.name} takes no reads: {reason}"
            self.record("host lags", text, logging.WARNING, host=host.name)
        elif host.reason.startswith(lags) and not reason:
            text = f"host {host.name} takes reads again: it lags {host.lag:.1f} s"
            self.record("host current", text, host=host.name)
        host.reason = reason

    def _choose_primary(self) -> None:
        current = self.primary
        if current is not None and current.role != "primary":
            text = f"host {current.name} is no longer the primary"
            self.record("no primary", text, logging.WARNING, host=current.name)
            self.primary = current = None
        claims = [
            (host.sight.timeline, host)
            for host in self.hosts.values()
            if host.sight is not None and host.sight.is_primary and host.error is None
        ]
        timeline, best = max(claims, key=lambda each: each[0], default=(0, None))
        if best is None or best is current or timeline < self.timeline:
            return
        if current is not None and current.error is None and timeline == self.timeline:
            return
        self.primary, older = best, timeline > self.timeline
        self.timeline = timeline
        text = f"host {best.name} is the primary, on timeline {timeline}"
        level = logging.INFO if self._connected_to is None else logging.WARNING
        self.record("primary", text, level, host=best.name, timeline=timeline)
        previous, self._connected_to = self._connected_to, best
        if (write := self._write_pool()) is not None:
            if previous in (None, best):
                write.connect_now()
            else:
                write.move(cut=older)

    def _write_pool(self) -> WritePool[Any] | None:
        return None if self._write is None else self._write()

    def _check(self, host: Host) -> None:
        if host.pool.is_open and (why := host.pool.why_down()) is not None:
            self.note_down(host, why)

    # Waits

    async def conninfo_of_primary(self) -> str:
        """Return the connection string of the primary, and wait some seconds for one.

        Raises:
            psycopg.OperationalError: no host was the primary in time, or all refuse access.
        """
        deadline = self._clock() + PATIENCE
        while (primary := self.primary) is None:
            hosts = self.hosts.values()
            refused = bool(hosts) and all(each.fault is Fault.ACCESS for each in hosts)
            if refused or (left := deadline - self._clock()) <= 0:
                # Without libpq's marks, unless all refuse access: then requests fail at once.
                said = self.describe_all()
                said = said if refused else said.replace("FATAL:  ", "")
                msg = f"no host of cluster {self.name!r} is the primary: {said}"
                raise psycopg.OperationalError(msg)
            with anyio.move_on_after(left):
                await self.changed()
        return make_conninfo(primary.address.conninfo, target_session_attrs=READ_WRITE)

    def suspect_primary(self) -> None:
        """Look at the primary soon, since something has failed there."""
        if self.primary is not None:
            self.suspect(self.primary.name)

    async def changed(self) -> None:
        """Wait for the next decision."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _wake(self) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)

    def fail_waits(self) -> None:
        """Wake all that wait, since the cluster is closed."""
        self._wake()

    def forget(self) -> None:
        """Begin again on another event loop: nothing is known of any host."""
        self._waiting.clear()
        self.primary = self._connected_to = None
        self.readable = []
        for host in self.hosts.values():
            host.forget()
            host.trouble = asyncio.Event()

    # Events

    def record(self, kind: str, text: str, level: int = logging.INFO, **facts: object) -> None:
        """Log an event and keep it for `explain()`."""
        self.events.note(self._clock(), kind, text, level)
        with suppress(Exception):
            extra = fields(self.name, kind, **facts)
            logger.log(level, "cluster %r: %s", self.name, text, extra=extra, stacklevel=2)
