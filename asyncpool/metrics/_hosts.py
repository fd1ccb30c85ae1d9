"""The numbers of a cluster's hosts: their names, their texts, and where they are read."""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncpool import HostStatus

ReadHost = Callable[[HostStatus], float | None]

ROLES = ("primary", "standby")
ROLE = "host_role", "1 for the role that the host has, 0 for the other one."
"""The gauge of these: its name and its text."""
REACHABLE, LAG = "host_reachable", "host_lag_seconds"
HOST_GAUGES: dict[str, tuple[str, Callable[[HostStatus], float]]] = {
    REACHABLE: ("Whether the host answers.", lambda host: host.reachable),
    "host_takes_reads": ("Whether the host takes reads.", lambda host: host.takes_reads),
    LAG: (
        "Time that the host lags behind the primary; +Inf: not known.",
        lambda host: host.lag,
    ),
    "host_reads_under_way": (
        "Reads that wait or run on the host.",
        lambda host: host.under_way,
    ),
}
HOST_SUMS = {"host_reads_under_way"}
"""Those of which the processes' numbers are added up; of the others the largest is reported."""
HOST_READS = "host_reads", "Reads that went to the host."
"""The counter of these; the host's share is its rate, in parts of the cluster's."""
HOSTS: dict[str, tuple[str, str, ReadHost]] = {
    "lag": (
        "s",
        "The time that the host lags behind the primary.",
        lambda host: None if host.lag == math.inf else host.lag,
    ),
    "reachable": ("1", "Whether the host answers.", lambda host: host.reachable),
    "takes_reads": ("1", "Whether the host takes reads.", lambda host: host.takes_reads),
}
"""The gauges of OpenTelemetry, behind "asyncpool.host.": their units and their texts."""
