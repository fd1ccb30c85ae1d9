"""The hosts of a cluster, and which of them take reads.

All is decided here, synchronously, after each look. The watch brings the looks, the router takes a
host.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from asyncpool._cluster.addresses import Address
from asyncpool._cluster.changes import Changes
from asyncpool._cluster.eligibility import LAGS, SERVES_NONE, UNLISTED, reasons_of
from asyncpool._cluster.host import Host
from asyncpool._cluster.pools import HostDown, HostPool
from asyncpool._cluster.primary import Primary
from asyncpool._cluster.sight import Sight, progress
from asyncpool._core.settings import sizes

MakePool = Callable[[Address, Callable[[], None]], HostPool[Any]]
"""Makes the pool for an address; the second argument is called in trouble."""
PROMOTED_WITHIN = 60.0
"""Seconds for which the primary has been down after which no promotion is expected."""
ABSENCES = 30
"""The number of lists, one after another, that lack the primary before it leaves, about one each
second: those that are short by mistake, as from DNS, must not move writes to an old primary."""


class Members:
    """The hosts of one cluster.

    Args:
        changes: the events, and the waits for a host.
        make_pool: makes the pool of a host.
        min_size, max_size: the sizes of each pool.
        max_lag: seconds that a standby may lag; infinite: any.
        read_from_primary: whether the primary takes reads beside standbys.
    """

    def __init__(
        self,
        changes: Changes,
        make_pool: MakePool,
        *,
        min_size: int,
        max_size: int | None,
        max_lag: float,
        read_from_primary: bool,
    ) -> None:
        self.name = changes.name
        self.changes = changes
        self.hosts: dict[str, Host] = {}
        """By name, in the order of the connection string."""
        self.leader = Primary(changes, self.all)
        self.readable: list[Host] = []
        """The hosts that take reads, the least recently chosen first."""
        self.on_leave: Callable[[Host], None] = lambda _: None
        """Called with a host that is no longer in the list."""
        self._drained: set[str] = set()
        """The names of drained hosts, also while the list does not have them."""
        self._make_pool = make_pool
        self._min_size, self._max_size = sizes(min_size, max_size)
        self._max_lag = max_lag
        self._read_from_primary = read_from_primary

    @property
    def primary(self) -> Host | None:
        """The host that is the primary, also while it is down."""
        return self.leader.host

    @property
    def expects_promotion(self) -> bool:
        """Whether the primary is down, but not for so long that nobody promotes a standby."""
        primary = self.primary
        if primary is None or primary.error is None:
            return False
        return self.changes.clock() - primary.down_since < PROMOTED_WITHIN

    def all(self) -> list[Host]:
        """Return the hosts."""
        return list(self.hosts.values())

    # The list

    def set_addresses(self, addresses: list[Address]) -> list[Host]:
        """Change the list of hosts; return the new ones."""
        before, hosts = self.hosts, dict[str, Host]()
        added = []
        for address in addresses:
            name = address.name
            host = before.get(name)
            if host is None:
                host = Host(address, self._make_pool(address, partial(self.suspect, name)))
                host.drained = name in self._drained
                added.append(host)
            hosts[name] = host
        # All pools could be made: so the list changes as a whole.
        for host in before.values():
            host.missed = 0 if host.name in hosts else host.missed + 1
        if (primary := self.primary) is not None and 0 < primary.missed < ABSENCES:
            hosts[primary.name] = primary
        self.hosts = hosts
        for address in addresses:
            host = hosts[address.name]
            if host.address != address:
                host.address = address
                host.pool.conninfo = address.conninfo
        for host in added if before else ():
            self.changes.record("host added", f"host {host.name} was added", host=host.name)
        for name, host in before.items():
            if name not in self.hosts:
                host.reason = UNLISTED
                self.changes.record("host removed", f"host {name}: {host.reason}", host=name)
                self.leader.leave(host)
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
        found = [each for each in self.all() if name in each.names]
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
        if host.sight is not None and before == "standby" and not sight.is_primary:
            # While it receives nothing, its history is that of the last primary that it followed.
            sight = replace(sight, timeline=sight.timeline or host.sight.timeline)
        host.sight, host.error, host.fault, host.silent_since = sight, None, None, None
        if was_down:
            text = f"host {host.name} answers, as a {host.role}"
            self.changes.record("host up", text, logging.WARNING, host=host.name)
        elif before is None:
            text = f"host {host.name} is a {host.role}"
            self.changes.record("host found", text, host=host.name)
        if before not in (None, host.role):
            text = f"host {host.name} was a {before} and is a {host.role}"
            self.changes.record("role", text, logging.WARNING, host=host.name, role=host.role)
        had_primary = self.primary is not None
        self.decide()
        if was_down and host is self.primary:
            self.leader.connect_now()
        if had_primary and self.primary is None:
            self._look_at_all()

    def note_down(self, host: Host, why: HostDown) -> None:
        """Note a look that has failed."""
        is_new = host.error is None
        if is_new:
            text = f"host {host.name} is down: {why}"
            self.changes.record("host down", text, logging.WARNING, host=host.name)
            host.down_since = self.changes.clock()
            if host is self.primary:
                for other in self.all():
                    other.trouble.set()  # it may have been promoted
        host.error, host.fault, host.silent_since = str(why) or "unknown", why.fault, None
        self.decide()
        if is_new and host is self.primary:
            self._look_at_all()

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

    def suspect_primary(self) -> None:
        """Look at the primary soon, since something has failed there."""
        if self.primary is not None:
            self.suspect(self.primary.name)

    def set_drained(self, host: Host, *, drained: bool) -> None:
        """Take a host out of service, or put it back."""
        if host.drained == drained:
            return
        host.drained = drained
        (self._drained.add if drained else self._drained.discard)(host.name)
        kind, what = ("drained", "no reads") if drained else ("resumed", "reads again")
        text = f"host {host.name} was {kind}, and takes {what}"
        self.changes.record(kind, text, host=host.name)
        self.decide()
        if drained:
            host.pool.replace_all()

    def forget(self) -> None:
        """Begin again on another event loop: nothing is known of any host."""
        self.changes.forget_waits()
        self.leader.forget()
        self.readable = []
        for host in self.all():
            host.forget()

    # Decisions

    def decide(self) -> None:
        """Decide anew which host is the primary and which hosts take reads."""
        self.leader.choose()
        hosts, primary = self.all(), self.primary
        for host in hosts:
            if host.sight is not None and host.error is None:
                positions = self.leader.positions
                host.lag, host.current_at = progress(host.sight, positions, host.current_at)
        reasons = reasons_of(
            hosts,
            primary,
            self.changes.clock(),
            timeline=self.leader.timeline,
            max_lag=self._max_lag,
            read_from_primary=self._read_from_primary,
        )
        left = [host for host in hosts if reasons[host] and not host.reason]
        for host in hosts:
            self._set_reason(host, reasons[host])
        kept = [host for host in self.readable if reasons.get(host) == ""]
        self.readable = kept + [host for host in hosts if not reasons[host] and host not in kept]
        for host in hosts:
            is_needed = not host.reason or (host.role == "standby" and not host.drained)
            host.pool.set_sizes(max(1, self._min_size) if is_needed else 1, self._max_size)
        for host in left:
            host.leave(host.reason)
            if host.error is not None:
                host.cancel_reads()
        self.changes.wake()

    def describe(self) -> str:
        """Return why each host takes no reads, as one text."""
        said = [f"{each.name}: {each.reason or 'it takes reads'}" for each in self.all()]
        return "; ".join(said) or "no host is known"

    def _set_reason(self, host: Host, reason: str) -> None:
        """Set why a host takes no reads; record a change that no other event tells."""
        old, host.reason = host.reason, reason
        for beginning, kind, end in (
            (LAGS, "host lags", "host current"),
            (SERVES_NONE, "host silent", "host serves"),
        ):
            if reason.startswith(beginning) and not old.startswith(beginning):
                text = f"host {host.name} takes no reads: {reason}"
                self.changes.record(kind, text, logging.WARNING, host=host.name)
            elif old.startswith(beginning) and not reason:
                text = f"host {host.name} takes reads again"
                self.changes.record(end, text, logging.WARNING, host=host.name)

    def _look_at_all(self) -> None:
        """Look at all hosts soon: one of them may be promoted."""
        for host in self.all():
            host.trouble.set()

    def _check(self, host: Host) -> None:
        if host.pool.is_open and (why := host.pool.why_down()) is not None:
            self.note_down(host, why)
