"""How far a host lags, by what the looks have found."""

from __future__ import annotations

import math
from typing import Any

from asyncpool._cluster.sight import Sight, number_of, progress, sight_of, text_of

PRIMARY = Sight(100.0, True, 500, 1, False, math.inf)


def standby(**changed: Any) -> Sight:
    """A standby that is behind, one second after the look at the primary."""
    given = {
        "at": 101.0,
        "is_primary": False,
        "position": 400,
        "timeline": 0,
        "has_replayed_all": False,
        "age": 3600.0,
    }
    return Sight(**given | changed)


def test_a_primary_does_not_lag() -> None:
    """It is its own measure."""
    assert progress(PRIMARY, PRIMARY, -math.inf) == (0.0, 100.0)


def test_a_standby_that_has_replayed_what_it_receives_is_current() -> None:
    """However long ago the last transaction was."""
    assert progress(standby(has_replayed_all=True), None, -math.inf) == (0.0, 101.0)


def test_a_standby_that_has_what_the_primary_had_is_current_as_of_that_look() -> None:
    """Also if it receives nothing now, as where the log is shipped in files."""
    assert progress(standby(position=500), PRIMARY, 50.0) == (0.0, 100.0)
    late = Sight(90.0, True, 500, 1, False, math.inf)
    assert progress(standby(position=500), late, 99.0) == (2.0, 99.0)


def test_the_lag_is_at_most_the_time_since_it_was_current() -> None:
    """Else the first commit after a quiet hour would be an hour of lag."""
    assert progress(standby(), PRIMARY, 99.5) == (1.5, 99.5)
    assert progress(standby(age=0.5), PRIMARY, 99.5) == (0.5, 99.5)


def test_a_standby_that_never_replayed_a_transaction_has_no_known_lag() -> None:
    """Until it has once been current."""
    assert progress(standby(age=math.inf), PRIMARY, -math.inf) == (math.inf, -math.inf)


def test_a_row_is_read_as_the_server_writes_it() -> None:
    """Positions are hexadecimal; so is the timeline in the name of a file."""
    row = [b"f", b"16/B374D848", b"0000001A", b"f", None]
    assert sight_of(row, 5.0) == Sight(5.0, True, 0x16B374D848, 26, False, math.inf)
    assert sight_of([b"t", None, None, b"t", b"-0.25"], 5.0) == Sight(5.0, False, 0, 0, True, 0.0)
    assert text_of(number_of("16/B374D848")) == "16/B374D848"
