"""The snapshot of a fleet, as one of its processes knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FleetStats:
    """The state of a fleet as one process knows it.

    Before the first look `last_look` is None, `limit` is 1, and what a look shows is 0.
    """

    name: str
    member: str
    """The name of this process in its marks."""
    weight: float
    sees: bool
    """Whether it sees the others; if not, only the pools' own sizes limit it."""
    limit: int | None
    """How many connections its pools may have now; None: it sees nobody, and has no limit."""
    share: int
    """Its fair share: what it gets if all others use theirs."""
    size: int
    """The connections of its pools, in every state."""
    members: int
    """The processes of the fleet that have connections, this one included."""
    fleet_size: int
    """The connections of all of them."""
    places: int
    """The connections that the server leaves to the fleet, with the reserve."""
    reserve: int
    """The places among them into which nobody grows."""
    others: int
    """The server's connections that are not the fleet's."""
    last_look: float | None
    """Seconds since the last look that succeeded."""
    looks: int
    """Looks that succeeded."""
    error: str | None
    """Why the last look failed; None: it did not."""

    @property
    def free(self) -> int:
        """The places that nobody uses; negative: the server has fewer than are used."""
        return self.places - self.fleet_size

    def __str__(self) -> str:
        limit = "unlimited" if self.limit is None else self.limit
        text = f"fleet {self.name!r}: {self.size} of {limit} connections"
        if not self.sees:
            return f"{text}, as the other processes cannot be seen: {self.error}"
        if self.last_look is None:
            return f"{text}, before the first look at the others"
        failed = "" if self.error is None else f"; the last look failed: {self.error}"
        return (
            f"{text}, fair share {self.share}; members: {self.members}, using {self.fleet_size} of"
            f" {self.places} places ({self.reserve} reserved); connections of others:"
            f" {self.others}; seen {self.last_look:.1f} s ago{failed}"
        )
