"""How far a host lags, by what the looks have found."""

from __future__ import annotations

import math
from typing import Any

from asyncpool._cluster.sight import Positions, Sight, number_of, progress, sight_of, text_of

NEVER = -math.inf


def standby(**changed: Any) -> Sight:
    """A standby that is behind, one second after the last look at the primary."""
    given = {
        "at": 101.0,
        "is_primary": False,
        "position": 400,
        "timeline": 0,
        "has_replayed_all": False,
        "age": 3600.0,
    }
    return Sight(**given | changed)


def positions(*looks: tuple[float, int]) -> Positions:
    """The positions of a primary at some instants."""
    found = Positions()
    for at, position in looks or [(98.0, 300), (99.0, 400), (100.0, 500)]:
        found.note(Sight(at, True, position, 1, False, math.inf))
    return found


def test_a_primary_does_not_lag() -> None:
    """It is its own measure."""
    primary = Sight(100.0, True, 500, 1, False, math.inf)
    assert progress(primary, positions(), NEVER) == (0.0, 100.0)


def test_a_standby_that_has_replayed_what_it_receives_is_current() -> None:
    """However long ago the last transaction was; and where the primary is not seen."""
    assert progress(standby(position=500, has_replayed_all=True), positions(), NEVER)[0] == 0.0
    late = positions((50.0, 600))
    assert progress(standby(has_replayed_all=True), late, NEVER) == (0.0, 101.0)


def test_what_was_written_a_moment_ago_is_on_its_way() -> None:
    """It counts only half a second later."""
    sight = standby(has_replayed_all=True, at=100.2)
    assert progress(sight, positions(), NEVER) == (0.0, 100.2)
    assert progress(standby(has_replayed_all=True, at=100.6), positions(), NEVER)[0] > 0.0


def test_a_standby_that_receives_nothing_more_lags_from_what_it_has() -> None:
    """Though it has replayed all of that, as where the network hangs."""
    lag, current_at = progress(standby(has_replayed_all=True), positions(), NEVER)
    assert (lag, current_at) == (2.0, 99.0)


def test_a_standby_that_has_what_the_primary_had_is_current_as_of_that_look() -> None:
    """Also if it receives nothing now, as where the log is shipped in files."""
    assert progress(standby(position=500), positions(), 50.0) == (0.0, 100.0)


def test_the_lag_is_at_most_the_time_since_it_was_current() -> None:
    """Else the first commit after a quiet hour would be an hour of lag."""
    assert progress(standby(), positions(), NEVER) == (2.0, 99.0)
    assert progress(standby(), positions(), 99.5) == (1.5, 99.5)
    assert progress(standby(age=0.5), positions(), 99.5) == (0.5, 99.5)


def test_a_standby_that_never_replayed_a_transaction_has_no_known_lag() -> None:
    """Until it has once been current."""
    assert progress(standby(age=math.inf, position=1), positions(), NEVER) == (math.inf, NEVER)


def test_a_row_is_read_as_the_server_writes_it() -> None:
    """Positions are hexadecimal; so is the timeline in the name of a file."""
    row = [b"f", b"16/B374D848", b"0000001A", b"f", None]
    assert sight_of(row, 5.0) == Sight(5.0, True, 0x16B374D848, 26, False, math.inf)
    assert sight_of([b"t", None, b"1a", b"t", b"-0.25"], 5.0) == Sight(5.0, False, 0, 26, True, 0.0)
    assert text_of(number_of("16/B374D848")) == "16/B374D848"
