"""The rule by which the members of a fleet share the places of a server. It does no I/O.

Every member reads the same table of all members, and computes the same targets from it: max-min
fair by weight, so that nobody has less than its fair share unless it needs less. A member above its
target gives back what others lack. A member below it claims its part of the free places.

A claim is the size up to which a member may grow by itself. It is published before it is used: a
member writes its claim, then reads those of the others, and uses only what fits beside them. Of two
members that do so at the same time, at least one sees both claims, so together they never exceed
the places, in whatever order they look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STALE = 5.0
"""Seconds after its last look from which a member is held to want nothing, such as one that is
suspended."""
VALID = 3.0
"""Seconds after its look for which a member uses its claim, by its own clock; less than `STALE`."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the others see it."""

    size: int
    """Its connections."""
    weight: float = 1.0
    want: int | None = None
    """How many connections more it needs; negative: it can do without some; None: not known."""
    claim: int = 0
    """The size up to which it may grow."""
    age: float = 0.0
    """Seconds since its last look, or, before its first one, since it has connected."""

    @property
    def takes_part(self) -> bool:
        """Whether it shares: not if it has not looked for a while. What it holds it keeps."""
        return self.age <= STALE and (self.want is not None or self.size <= 1)

    @property
    def held(self) -> int:
        """The places that it has or may take."""
        return max(self.size, self.claim if self.takes_part else 0)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of one member by the rule."""

    target: int
    """Its fair share."""
    claim: int
    """The size to publish and, once it is seen to fit, to use; below the size: to give back."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The connections that one member may have after a look."""

    target: int
    """Its fair share."""
    limit: int
    """How many connections it may have now; below its size: it has to give some back."""
    next: int
    """The limit after the next look, which publishes this first, if nothing changes."""


def targets(places: int, demands: Mapping[str, tuple[int, float]]) -> dict[str, int]:
    """Return the max-min fair part of each member, by weight.

    Nobody gets more than its demand. While the places suffice, everybody with a demand gets one.

    Args:
        places: the places to share.
        demands: of each member the connections that it needs, and its weight.
    """
    parts = {who: float(demand) for who, (demand, _) in demands.items()}
    if sum(parts.values()) <= places:
        return {who: demand for who, (demand, _) in demands.items()}
    active = {who: each for who, each in demands.items() if each[0] > 0}
    least = 1 if len(active) <= places else 0
    left = float(places)
    # The algorithm of CSS for flexible lengths: of those outside of their bounds, either the ones
    # below or the ones above are fixed in each round, whichever are further outside together.
    while active:
        unit = max(left, 0.0) / sum(weight for _, weight in active.values())
        bounded = {
            who: min(max(weight * unit, least), demand) for who, (demand, weight) in active.items()
        }
        parts |= bounded
        outside = {who: bounded[who] - active[who][1] * unit for who in active}
        total = sum(outside.values())
        fixed = [
            who
            for who, each in outside.items()
            if (each > 1e-9 and total > -1e-9) or (each < -1e-9 and total < 1e-9)
        ]
        if not fixed:
            break
        for who in fixed:
            left -= parts[who]
            del active[who]
    return split(min(places, round(sum(parts.values()))), parts)


def split(number: int, parts: Mapping[str, float]) -> dict[str, int]:
    """Divide a number in the proportion of the parts: each part is rounded up or down.

    The largest remainders are rounded up; of equal ones, those of the first names.
    """
    total = sum(parts.values())
    exact = {who: number * part / total if total else 0.0 for who, part in parts.items()}
    found = {who: int(part + 1e-9) for who, part in exact.items()}
    rest = number - sum(found.values()) if total else 0
    for who in sorted(found, key=lambda who: (round(found[who] - exact[who], 9), who))[:rest]:
        found[who] += 1
    return found


def share(places: int, members: Mapping[str, Member], me: str) -> Share:
    """Return the target and the next claim of one member.

    Args:
        places: the places for all members together; it may be less than they have.
        members: all members, this one as it is now, with what it needs.
        me: this member.
    """
    own = members[me]
    places -= sum(each.size for each in members.values() if not each.takes_part)
    members = {who: each for who, each in members.items() if each.takes_part}
    # A member that has just come is given its fair share until it says what it needs. Nobody gives
    # back its last connection, on which it looks.
    demands = {
        who: (max(places if each.want is None else each.size + each.want, 1), each.weight)
        for who, each in members.items()
    }
    fair = targets(max(places, 0), demands)
    free = places - sum(each.size for each in members.values())
    lacks = {who: max(fair[who] - each.size, 0) for who, each in members.items()}
    if own.size > fair[me] and (short := sum(lacks.values()) - free) > 0:
        above = {who: max(each.size - fair[who], 0.0) for who, each in members.items()}
        back = split(min(short, int(sum(above.values()))), above)[me]
        return Share(fair[me], max(own.size - back, 1))
    unclaimed = unheld(places, members, me) - own.size
    yet = {who: max(fair[who] - each.held, 0.0) for who, each in members.items()}
    yet[me] = lacks[me]
    grows = lacks[me]
    if sum(yet.values()) > unclaimed:
        grows = split(max(unclaimed, 0), yet)[me]
    # What nobody needs is divided, so that it can be used without a look before.
    spare = places - sum(max(fair[who], each.size) for who, each in members.items())
    total = sum(each.weight for each in members.values())
    more = int(max(spare, 0) * own.weight / total + 1e-9)
    return Share(fair[me], own.size + max(min(grows + more, unclaimed), 0))


def grant(places: int, members: Mapping[str, Member], me: str, published: int) -> Grant:
    """Return what one member may have after a look.

    Args:
        places: the places for all members together.
        members: all members, as they were seen after this one had published a claim.
        me: this member.
        published: that claim.
    """
    size, given = members[me].size, share(places, members, me)
    if given.claim < size:
        return Grant(given.target, given.claim, given.claim)
    free = max(min(given.claim, unheld(places, members, me)), size, 1)
    return Grant(given.target, max(min(published, free), size, 1), free)


def unheld(places: int, members: Mapping[str, Member], me: str) -> int:
    """Return the places that the other members neither have nor may take."""
    return places - sum(each.held for who, each in members.items() if who != me)
