"""The numbers of a fleet as one of its processes sees it: their names, and where they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asyncpool import FleetStats


@dataclass(frozen=True, slots=True)
class FleetGauge:
    """One number of a fleet."""

    key: str
    """Its name in OpenTelemetry, behind "asyncpool.fleet."."""
    unit: str
    text: str
    read: Callable[[FleetStats], float | None]
    """None: the process does not know it, or there is none."""
    own: bool = False
    """Whether it is of the process, and not of the whole fleet."""

    @property
    def name(self) -> str:
        """Its name in Prometheus, without the prefix."""
        return f"fleet_{self.key}_seconds" if self.unit == "s" else f"fleet_{self.key}"


GAUGES = (
    FleetGauge(
        "members",
        "{process}",
        "Processes of the fleet that have connections, this one included.",
        lambda stats: stats.members,
    ),
    FleetGauge(
        "share",
        "{connection}",
        "Connections that this process gets if all others use theirs.",
        lambda stats: stats.share,
        own=True,
    ),
    FleetGauge(
        "limit",
        "{connection}",
        "Connections that this process may have now.",
        lambda stats: stats.limit,
        own=True,
    ),
    FleetGauge(
        "size",
        "{connection}",
        "Connections of this process.",
        lambda stats: stats.size,
        own=True,
    ),
    FleetGauge(
        "connections",
        "{connection}",
        "Connections of all processes of the fleet.",
        lambda stats: stats.fleet_size,
    ),
    FleetGauge(
        "places",
        "{connection}",
        "Connections that the server leaves to the fleet, with its reserve.",
        lambda stats: stats.places,
    ),
    FleetGauge(
        "others",
        "{connection}",
        "Connections of the server that are not the fleet's.",
        lambda stats: stats.others,
    ),
    FleetGauge(
        "look_age",
        "s",
        "Time since this process last saw the others.",
        lambda stats: stats.last_look,
    ),
)
