"""What the overload benchmark plans, and what it computes from the requests."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("rich")

from benchmarks.overload._figures import Cell, evaluate
from benchmarks.overload._page import BEGIN, END, FIGURES, PAGE, PICTURE, write
from benchmarks.overload._report import merge
from benchmarks.overload._rows import ROWS, SIZE, Phase, Row, Stream
from benchmarks.overload._schedule import Request, Span, schedule, spans
from benchmarks.overload._tables import all_figures, streams, summary

CAPACITY = 100.0
ALL = Stream("all", 1.0)


def planned(row: Row, seed: int = 1, seconds: float = 50.0) -> tuple[list[Request], list[Span]]:
    places = spans(row.phases(seconds))
    return schedule(row, places, CAPACITY, Random(seed)), places


def request(due: float, took: float, outcome: str = "answered", stream: Stream = ALL) -> Request:
    return Request(stream, due, 0.1, due, due + took, outcome)


def evaluated(requests: list[Request], *phases: Phase) -> Cell:
    return evaluate("row", "pool", requests, spans(list(phases)), CAPACITY)


def rate(requests: list[Request], place: Span) -> float:
    return sum(place.holds(each.due) for each in requests) / place.phase.seconds


@pytest.mark.parametrize("key", ["load-0.5", "load-3", "cancel-10"])
def test_requests_come_at_the_load_of_the_row(key: str) -> None:
    """Within what is likely for a Poisson process of that length."""
    requests, places = planned(ROWS[key])
    expected = ROWS[key].load * CAPACITY
    assert rate(requests, places[1]) == pytest.approx(expected, rel=0.1)
    assert [each.due for each in requests] == sorted(each.due for each in requests)


def test_every_pool_gets_the_same_requests() -> None:
    """A seed gives the same instants each time; another one gives others."""
    row = ROWS["mixed-uses"]
    assert planned(row)[0] == planned(row)[0]
    assert planned(row)[0] != planned(row, seed=2)[0]
    assert {each.use for each in planned(row)[0]} == set(row.streams[0].uses)


def test_an_overload_begins_with_a_full_queue() -> None:
    """Of as many requests as a pool can answer within the deadline; a low load begins with none."""
    first = [sum(not each.due for each in planned(ROWS[key])[0]) for key in ("load-1.2", "load-1")]
    assert first == [CAPACITY, 0]


def test_a_spike_is_ten_times_the_load_and_ends() -> None:
    """What comes before and after it is the same."""
    requests, places = planned(ROWS["spike"])
    before, spike, after = (rate(requests, place) for place in places[1:4])
    assert spike == pytest.approx(5 * CAPACITY, rel=0.1)
    assert before == pytest.approx(0.5 * CAPACITY, rel=0.3)
    assert after == pytest.approx(0.5 * CAPACITY, rel=0.3)


def test_a_burst_comes_at_one_instant() -> None:
    """Its requests can be answered within the deadline if none is delayed."""
    requests, places = planned(ROWS["bursts"], seconds=4.0)
    instants = sorted({each.due for each in requests if places[1].holds(each.due)})
    assert instants == [places[1].start, places[1].start + 2.0]
    assert sum(each.due == instants[0] for each in requests) == 0.6 * CAPACITY


def test_an_answer_after_the_deadline_is_late() -> None:
    """The deadline counts from when the request was due, not from when it was started."""
    late = Request(ALL, 0.0, 0.1, 0.5, 1.1, "answered")
    assert not late.good
    cell = evaluated([late, request(0.1, 0.9), request(0.2, 0.5, "refused")], Phase(1.0))
    assert (cell.good, cell.late, cell.refused) == (1 / 3, 1 / 3, 1 / 3)
    assert cell.p50 == pytest.approx(0.9)
    assert cell.lag == pytest.approx(0.5)


def test_only_requests_of_the_measured_time_count() -> None:
    """Those before and after it keep the load up."""
    phases = (Phase(1.0, measured=False), Phase(1.0), Phase(1.0, measured=False))
    requests = [request(0.5, 2.0), request(1.5, 0.1), request(2.5, 0.1, "timed out")]
    cell = evaluated(requests, *phases)
    assert (cell.offered, cell.good, cell.timed_out) == (1.0, 1.0, 0.0)


def test_goodput_counts_the_answers_of_the_measured_time() -> None:
    """Else a queue that is empty at its beginning and full at its end would be a gain."""
    phases = (Phase(1.0, measured=False), Phase(1.0), Phase(1.0, measured=False))
    came_before, answered_after = request(0.9, 0.5), request(1.9, 0.5)
    some = [came_before, *[request(1.1, 0.1)] * 2, *[answered_after] * 2]
    cell = evaluated(some, *phases)
    assert (cell.goodput, cell.good) == (3 / 4, 1.0)


def test_goodput_is_in_parts_of_what_was_possible() -> None:
    """Of the offered requests at a low load, of the capacity at a high one."""
    few = [request(number / 50, 0.01) for number in range(50)]
    assert evaluated(few, Phase(1.0)).goodput == 1.0
    many = [request(number / 300, 0.1 if number % 6 else 2.0) for number in range(300)]
    half = [each for each in many if each.good][:50] + [each for each in many if not each.good]
    half += [request(0.5, 1.0, "refused")] * 200
    assert evaluated(half, Phase(1.0)).goodput == pytest.approx(0.5)


def test_less_is_possible_while_the_server_is_slow() -> None:
    """At a quarter of the speed, a quarter of the capacity."""
    good = [request(1 + number / 25, 0.01) for number in range(25)]
    good += [request(number / 90, 0.01) for number in range(90)]
    missed = [request(1.0, 1.0, "refused")] * 65
    assert evaluated(good + missed, Phase(1.0), Phase(1.0, slower=4)).goodput == 1.0


def test_what_is_left_of_a_spike_may_be_answered_after_it() -> None:
    """As much as fits in a deadline."""
    spike = [request(0.5, 0.1)] * 100 + [request(0.9, 0.9)] * 100 + [request(0.9, 0.1, "refused")]
    assert evaluated(spike, Phase(1.0, factor=10), Phase(2.0)).goodput == pytest.approx(1.0)


def test_a_hot_row_is_served_by_one_connection() -> None:
    """More is not possible, so that a pool that does this has a goodput of 100 %."""
    hot = Stream("hot", 0.3, hot=True)
    served = [request(0.0, 0.1, stream=hot)] * int(CAPACITY / SIZE)
    missed = [request(0.0, 0.1, "refused", stream=hot)] * 20
    others = [request(0.5, 0.1)] * 60
    cell = evaluated(served + missed + others, Phase(1.0))
    assert cell.goodput == pytest.approx(1.0)
    assert cell.streams == {"hot": 1 / 3, "all": 1.0}


def test_a_pool_recovers_when_nearly_all_are_answered_again() -> None:
    """Counted from the end of the spike; one that does not recover has no time."""
    spike, after = Phase(1.0, factor=10), Phase(2.0)
    bad = [request(1 + number / 40, 2.0) for number in range(20)]
    good = [request(1.5 + number / 40, 0.1) for number in range(60)]
    assert evaluated(bad + good, spike, after).recovered == 0.5
    assert evaluated(good, spike, after).recovered == 0.0
    assert evaluated([*bad, request(2.9, 2.0)], spike, after).recovered is None


def test_other_errors_are_named() -> None:
    """They are neither refusals nor time limits."""
    cell = evaluated([request(0.1, 0.1, "OperationalError"), request(0.2, 0.1)], Phase(1.0))
    assert (cell.errors, cell.good) == ({"OperationalError": 1}, 0.5)


def report(*cells: Cell) -> dict[str, Any]:
    return {
        "facts": {"cpu": "a", "python": "b", "postgresql": "c"},
        "settings": {"seconds": 1.0, "size": SIZE, "use": 0.04},
        "rows": {cell.row: ROWS[cell.row].title for cell in cells},
        "peers": list(dict.fromkeys(cell.pool for cell in cells)),
        "cells": [cell.record() for cell in cells],
    }


def test_a_row_that_a_pool_cannot_play_has_an_empty_place() -> None:
    """So has one whose process has failed."""
    cells = Cell("load-3", "asyncpg", goodput=0.5), Cell("hot", "sqlalchemy", "no figures")
    assert summary(report(*cells))[1:] == [
        ["load 3", "50 %", ""],
        [ROWS["hot"].title, "", ""],
    ]
    assert all_figures(report(*cells))[2][2] == "no figures"
    assert len(streams(report(*cells))) == 1


def test_of_a_cell_that_was_measured_twice_the_less_disturbed_run_counts() -> None:
    """That is the one with the shorter lag. Rows are in their order, whichever file has them."""
    first = report(Cell("load-3", "asyncpg", goodput=0.1, lag=0.1), Cell("hot", "asyncpg"))
    second = report(Cell("load-3", "asyncpg", goodput=0.2, lag=0.01), Cell("load-1", "sqlalchemy"))
    third = report(Cell("load-3", "asyncpg", "hangs"))
    cells = merge([first, second, third], tuple(ROWS))["cells"]
    assert [(each["row"], each["pool"]) for each in cells] == [
        ("load-1", "sqlalchemy"),
        ("load-3", "asyncpg"),
        ("hot", "asyncpg"),
    ]
    assert cells[1]["goodput"] == 0.2


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib not found")
def test_only_what_is_between_the_marks_of_the_pages_is_replaced(tmp_path: Path) -> None:
    """The picture is beside them."""
    for name in (PAGE, FIGURES):
        (tmp_path / name).write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    write(report(Cell("load-3", "asyncpool-refuse", goodput=1.0)), tmp_path)
    for name in (PAGE, FIGURES):
        text = (tmp_path / name).read_text()
        assert text.startswith(f"before\n{BEGIN}\n\n|")
        assert text.endswith(f"\n{END}\nafter\n")
        assert "| load 3 |" in text
        assert "stale" not in text
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    """Nothing of either page is lost."""
    (tmp_path / PAGE).write_text(f"{BEGIN}\nstale\n{END}\n")
    (tmp_path / FIGURES).write_text("text\n")
    with pytest.raises(ValueError, match="has no"):
        write(report(Cell("load-3", "asyncpg")), tmp_path)
    assert "stale" in (tmp_path / PAGE).read_text()
    assert (tmp_path / FIGURES).read_text() == "text\n"
