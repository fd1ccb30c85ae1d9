"""The list of hosts, and what is kept of those that leave it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from asyncpool._cluster.addresses import Address, addresses_of
from asyncpool._cluster.changes import Changes
from asyncpool._cluster.members import ABSENCES, Members
from asyncpool._cluster.pools import HostPool
from asyncpool._cluster.sight import Sight
from asyncpool.faults import classify

if TYPE_CHECKING:
    from collections.abc import Callable


def members_of(*names: str) -> Members:
    """Hosts of which each was looked at: the first is a primary on timeline 2, the others on 1."""

    def make_pool(address: Address, on_trouble: Callable[[], None]) -> HostPool[Any]:
        return HostPool(address.conninfo, on_trouble, min_size=1, classify=classify)

    members = Members(
        Changes("test", time.monotonic),
        make_pool,
        min_size=1,
        max_size=2,
        max_lag=math.inf,
        read_from_primary=True,
    )
    members.set_addresses(listed(*names))
    for place, host in enumerate(members.all()):
        members.note_sight(host, seen(1 if place else 2))
    return members


def listed(*names: str) -> list[Address]:
    """The addresses of some hosts."""
    return [address for name in names for address in addresses_of(f"host={name}")]


def seen(timeline: int, *, is_primary: bool = True) -> Sight:
    """A look at a host that is current."""
    return Sight(time.monotonic(), is_primary, 500, timeline, True, 0.0)


def test_a_primary_leaves_when_many_lists_one_after_another_lack_it() -> None:
    """Until then it is followed, though it takes no reads; one list with it begins anew."""
    members = members_of("new", "old")
    for _ in range(2):
        for _ in range(ABSENCES - 1):
            members.set_addresses(listed("old"))
            assert members.primary is members.hosts["new:5432"]
            assert members.primary.reason == "it is no longer in the list"
        members.set_addresses(listed("new", "old"))
        assert members.readable == [members.primary]
    for _ in range(ABSENCES):
        members.set_addresses(listed("old"))
    assert list(members.hosts) == ["old:5432"]
    assert members.primary is members.hosts["old:5432"]


def test_a_host_that_is_not_the_primary_leaves_with_the_first_list() -> None:
    """No write goes there; when it is listed again it is a new one."""
    members = members_of("new", "old")
    members.set_addresses(listed("new"))
    assert list(members.hosts) == ["new:5432"]


def test_a_standby_that_receives_nothing_has_the_timeline_of_what_it_received() -> None:
    """Else one that followed an old primary would take reads as soon as that one has gone."""
    members = members_of("primary", "standby")
    standby = members.hosts["standby:5432"]
    members.note_sight(standby, seen(1, is_primary=False))
    for _ in range(2):
        assert standby.reason == "it follows a primary on the older timeline 1"
        members.note_sight(standby, seen(0, is_primary=False))
    members.note_sight(standby, seen(2, is_primary=False))
    assert not standby.reason
