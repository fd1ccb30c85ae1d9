"""Which host is the primary, by what the hosts claim."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from asyncpool._cluster.addresses import Address
from asyncpool._cluster.changes import Changes
from asyncpool._cluster.host import Host
from asyncpool._cluster.primary import Primary
from asyncpool._cluster.sight import Sight

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def sight(timeline: int) -> Sight:
    """A look at a primary on a timeline; 0: at a standby."""
    return Sight(time.monotonic(), timeline > 0, 1, timeline, True, 0.0)


def a_pair(clock: Callable[[], float] = time.monotonic) -> tuple[Host, Host, Primary]:
    """Two hosts that nobody has looked at, and who decides which is the primary."""
    no_pool = cast("Any", None)
    hosts = [Host(Address(name, "", 5432, f"host={name}"), no_pool) for name in "ab"]
    return (*hosts, Primary(Changes("test", clock), lambda: hosts))  # type: ignore[return-value]


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


def test_of_two_on_one_timeline_the_present_one_stays_until_it_is_long_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One slow look does not move the writes; it is a warning, once."""
    now = 100.0
    a, b, primary = a_pair(lambda: now)
    a.sight, b.sight = sight(1), sight(1)
    for _ in range(2):
        primary.choose()
        assert primary.host is a
    a.error, a.down_since = "no answer", now
    now = 109.9
    primary.choose()
    assert primary.host is a
    a.error = None
    primary.choose()
    a.error, a.down_since = "no answer", now
    now = 119.9
    primary.choose()
    assert primary.host is b
    (record,) = [each for each in caplog.records if "same timeline" in each.getMessage()]
    assert record.levelname == "WARNING"
    assert "hosts a:5432 and b:5432 are primaries on the same timeline 1" in record.getMessage()


def test_a_claim_on_the_same_timeline_is_followed_where_the_primary_is_a_standby() -> None:
    """It says itself that it is none."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(1), sight(1)
    primary.choose()
    a.sight = sight(0)
    primary.choose()
    assert primary.host is b


def test_a_claim_on_an_older_timeline_is_followed_where_all_answer_for_long() -> None:
    """At once it could be an old primary, while the next one is not promoted yet."""
    now = 100.0
    a, b, primary = a_pair(lambda: now)
    a.sight, b.sight = sight(1), sight(2)
    primary.choose()
    b.sight = sight(0)
    primary.choose()
    now = 109.9
    primary.choose()
    assert primary.host is None
    now, b.error = 110.0, "down"
    primary.choose()
    assert primary.host is None
    b.error = None
    primary.choose()
    assert primary.host is a
    assert primary.timeline == 1


def test_no_host_is_followed_again_before_all_were_looked_at() -> None:
    """As after a fork: another one may have been promoted meanwhile."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(1), sight(0)
    primary.choose()
    primary.forget()
    b.sight = None
    primary.choose()
    assert primary.host is None
    b.sight = sight(2)
    primary.choose()
    assert primary.host is b


def test_a_primary_that_began_again_competes_with_its_new_timeline() -> None:
    """The other one is newer, although the first was on a higher timeline before."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(5), sight(0)
    primary.choose()
    a.sight, b.sight = sight(1), sight(2)
    primary.choose()
    assert primary.host is b


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


def test_a_host_that_left_the_list_is_forgotten() -> None:
    """So that one on a lower timeline may be followed, if it is all there is."""
    a, b, primary = a_pair()
    a.sight, b.sight = sight(2), sight(1)
    primary.choose()
    primary.leave(a)
    a.sight = None
    a.error = "gone"
    primary.choose()
    assert primary.host is b
