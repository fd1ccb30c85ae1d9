"""Why a host takes no reads. Pure functions of the hosts' states."""

from __future__ import annotations

import math
from collections.abc import Collection

from asyncpool._cluster.host import Host

SILENT = 1.5
"""Seconds without a free connection or an answer after which a host gets no more reads, if others
take them."""
LAGS = "it lags"
"""The beginning of the reason of a standby that lags too much."""
UNLISTED = "it is no longer in the list"
"""The reason of a host that the callable for the hosts does not list."""
SERVES_NONE = "no connection came free, and it served nothing"
"""The reason of a host that is silent: it hangs, or has long statements on all connections."""


def reasons_of(
    hosts: Collection[Host],
    primary: Host | None,
    now: float,
    *,
    timeline: int,
    max_lag: float,
    read_from_primary: bool,
) -> dict[Host, str]:
    """Return for each host why it takes no reads; empty: it takes some.

    Args:
        hosts: the hosts.
        primary: the primary, also while it is down.
        now: the current instant.
        timeline: that of the primary.
        max_lag: seconds that a standby may lag.
        read_from_primary: whether the primary takes reads beside standbys; if not, it does while no
            standby can.
    """
    reasons = {host: _reason(host, primary, timeline, max_lag) for host in hosts}
    if primary in reasons and not reasons[primary] and not read_from_primary:
        others = [host for host in hosts if host is not primary]
        # While a host was not looked at yet, it may be found to be a standby that takes reads.
        if any(not reasons[host] or not host.is_known for host in others):
            reasons[primary] = "it is the primary"
    silent = [host for host in hosts if not reasons[host] and _is_silent(host, now)]
    if any(not reasons[host] and host not in silent for host in hosts):
        for host in silent:
            reasons[host] = SERVES_NONE
    return reasons


def _reason(host: Host, primary: Host | None, timeline: int, max_lag: float) -> str:
    """Return why a host takes no reads, whatever the others do."""
    if host.missed:
        return UNLISTED
    if host.drained:
        return "it is drained"
    if host.error is not None:
        return f"it is down: {host.error}"
    if host.sight is None:
        return "it was not looked at yet"
    if host.role == "primary":
        return "" if host is primary else "it is not the primary that the cluster follows"
    return _reason_of_standby(host, host.sight.timeline, timeline, max_lag)


def _reason_of_standby(host: Host, follows: int, timeline: int, max_lag: float) -> str:
    """Return why a standby that answers takes no reads."""
    if 0 < follows < timeline:
        return f"it follows a primary on the older timeline {follows}"
    if host.lag > max_lag:
        lag = "an unknown time" if host.lag == math.inf else f"{host.lag:.1f} s"
        return f"{LAGS} {lag} behind (max_lag={max_lag:g})"
    return ""


def _is_silent(host: Host, now: float) -> bool:
    return host.silent_since is not None and now - host.silent_since >= SILENT
