"""Which host is the primary, by what the hosts claim."""

from __future__ import annotations

import time
from typing import Any, cast

from asyncpool._cluster.addresses import Address
from asyncpool._cluster.changes import Changes
from asyncpool._cluster.host import Host
from asyncpool._cluster.primary import Primary
from asyncpool._cluster.sight import Sight


def sight(timeline: int) -> Sight:
    """A look at a primary on a timeline; 0: at a standby."""
    return Sight(time.monotonic(), timeline > 0, 1, timeline, True, 0.0)


def a_pair() -> tuple[Host, Host, Primary]:
    """Two hosts that nobody has looked at, and who decides which is the primary."""
    no_pool = cast("Any", None)
    hosts = [Host(Address(name, "", 5432, f"host={name}"), no_pool) for name in "ab"]
    return (*hosts, Primary(Changes("test", time.monotonic), lambda: hosts))  # type: ignore[return-value]


def test_no_host_is_the_primary_before_all_were_looked_at() -> None:
    """The other one may be on a newer timeline; one that is down is not waited for."""
    a, b, primary = a_pair()
    a.sight = sight(1)
    primary.choose()
    assert primary.host is None
    b.sight = sight(2)
    primary.choose()
    assert primary.host is b
    a, b, primary = a_pair()
    a.sight, b.error = sight(1), "down"
    primary.choose()
    assert primary.host is a


def test_of_two_the_one_on_the_higher_timeline_is_the_primary() -> None:
    """The other one is not followed, although the first is down."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(1), sight(2)
    primary.choose()
    assert (primary.host, primary.timeline) == (b, 2)
    b.error = "down"
    primary.choose()
    assert primary.host is b
    b.error, b.sight = None, sight(0)
    primary.choose()
    assert primary.host is None


def test_of_two_on_one_timeline_the_present_one_stays_while_it_is_up() -> None:
    """As where one server has two addresses."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(1), sight(1)
    primary.choose()
    assert primary.host is a
    primary.choose()
    assert primary.host is a
    a.error = "down"  # one slow look must not move the writes
    primary.choose()
    assert primary.host is a


def test_timelines_that_begin_again_are_followed() -> None:
    """After pg_upgrade or a restore all servers are on timeline 1."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(5), sight(0)
    primary.choose()
    a.sight = sight(1)
    primary.choose()
    a.error, b.sight = "down", sight(2)
    primary.choose()
    assert primary.host is b


def test_a_new_timeline_of_the_primary_itself_counts() -> None:
    """It was a standby and a primary again between two looks."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(1), sight(0)
    primary.choose()
    a.sight = sight(3)
    primary.choose()
    a.error, b.sight = "down", sight(2)
    primary.choose()
    assert primary.host is a


def test_a_host_that_left_the_list_is_remembered_for_a_while() -> None:
    """Then one on a lower timeline is followed, if it is all there is."""
    now = 1000.0
    a, b, _ = a_pair()
    primary = Primary(Changes("test", lambda: now), lambda: [a, b])
    a.sight, b.sight = sight(2), sight(1)
    primary.choose()
    primary.leave(a)
    a.forget()
    primary.choose()
    assert primary.host is None
    now += 29.0
    primary.choose()
    assert primary.host is None
    now += 2.0
    primary.choose()
    assert primary.host is not None
    assert (primary.host.name, primary.timeline) == (b.name, 1)
