"""What the cluster benchmark computes from the requests, and how its page is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

from benchmarks.cluster._figures import STALE, WARM, Cell, evaluate
from benchmarks.cluster._load import PAIR, READ, WRITE, Request
from benchmarks.cluster._page import BEGIN, END, merge, write
from benchmarks.cluster._peers import PEERS
from benchmarks.cluster._rows import ROWS
from benchmarks.cluster._tables import HEADS, all_figures, figures, notes
from benchmarks.cluster._trial import Observations

HOST, OTHER = 5001, 5002


def read(at: float, port: int = HOST, newest: int = 0, outcome: str = "answered") -> Request:
    return Request(READ, 0, at, at + 0.01, outcome, port, newest)


def written(number: int, at: float, outcome: str = "answered") -> Request:
    return Request(WRITE, number, at, at + 0.01, outcome)


def observed(*requests: Request, end: float = 10.0, **fields: Any) -> Observations:
    return Observations(list(requests), end=end, host=HOST, **fields)


def evaluated(*requests: Request, balance: bool = False, **fields: Any) -> Cell:
    return evaluate("killed", "asyncpool", observed(*requests, **fields), balance=balance)


def alternating(start: float, end: float, ports: tuple[int, ...] = (HOST, OTHER)) -> list[Request]:
    count = int((end - start) * 100)
    return [read(start + number / 100, ports[number % len(ports)]) for number in range(count)]


def test_a_request_without_an_answer_has_failed() -> None:
    """By the name of its error; those of the first second do not count."""
    early = read(WARM / 2, outcome="PoolTimeout")
    cell = evaluated(early, read(2.0), read(3.0, outcome="TimeoutError"), written(1, 4.0, "hung"))
    assert (cell.reads, cell.failed_reads) == (2, {"TimeoutError": 1})
    assert (cell.writes, cell.failed_writes) == (1, {"hung": 1})
    assert cell.p99 == pytest.approx(0.01)


def test_a_read_is_stale_that_does_not_see_what_was_written_long_before() -> None:
    """A pool may take a second to notice a lag, on top of the lag that it allows."""
    write = written(7, 2.0)
    late = write.end + STALE + 0.1
    cell = evaluated(
        write, read(late - 0.2), read(late), read(late, newest=7), read(late, newest=6)
    )
    assert cell.stale == 2 / 4
    assert evaluated(written(7, 2.0, "hung"), read(late)).stale == 0.0


def test_a_pair_is_stale_that_does_not_see_its_own_write() -> None:
    """However short the time since the commit is."""
    pairs = [Request(PAIR, 1, 2.0, 2.1, "answered", HOST, 9, found) for found in (True, False)]
    cell = evaluated(*pairs, ledger=[1])
    assert cell.stale == 0.5
    assert cell.p50 == pytest.approx(0.1)


def test_the_share_of_a_host_is_its_lowest_and_highest_in_a_second() -> None:
    """Of the answers of that second."""
    first = alternating(WARM, WARM + 1)
    second = alternating(WARM + 1, WARM + 2, (HOST, OTHER, OTHER, OTHER))
    cell = evaluated(*first, *second, balance=True, end=WARM + 2)
    assert cell.share == pytest.approx((0.25, 0.5), abs=0.02)


def test_a_host_is_back_when_its_share_is_fair_for_a_second() -> None:
    """Counted from its return; a host that stays away has no time."""
    away, back = alternating(1.0, 6.0, (OTHER,)), alternating(6.0, 10.0)
    cell = evaluated(*away, *back, back=4.0)
    assert cell.returned
    assert cell.fair == pytest.approx(1.7, abs=0.15)
    assert evaluated(*alternating(1.0, 10.0, (OTHER,)), back=4.0).fair is None
    assert not evaluated(*back).returned


def test_the_longest_time_without_a_write_counts() -> None:
    """Between two answers, or up to the end."""
    writes = [written(number, 1.0 + number / 10) for number in range(30)]
    assert evaluated(*writes, end=10.0).without == pytest.approx(10 - 3.91)
    writes.append(written(99, 9.0))
    assert evaluated(*writes, end=10.0).without == pytest.approx(9.01 - 3.91)


def test_the_ledger_shows_lost_and_double_writes() -> None:
    """A write whose outcome the pool did not know may be there or not."""
    writes = [written(1, 2.0), written(2, 3.0), written(3, 4.0, "OperationalError")]
    cell = evaluated(*writes, ledger=[1, 1, 3])
    assert (cell.lost, cell.double) == (1, 1)
    assert evaluated(*writes, ledger=[1, 2]).lost == 0


def report(*cells: Cell) -> dict[str, Any]:
    return {
        "facts": {"cpu": "a", "python": "b", "postgresql": "c"},
        "settings": {"size": 4, "most": 8, "rates": {"read": 150.0, "write": 40.0}},
        "rows": {cell.row: ROWS[cell.row].title for cell in cells},
        "pools": list(dict.fromkeys(cell.pool for cell in cells)),
        "cells": [cell.record() for cell in cells],
    }


def test_each_cell_is_a_line_of_the_table() -> None:
    """One without figures says why; errors are named below."""
    cell = Cell("killed", "asyncpool", reads=9, failed_reads={"PoolTimeout": 2}, returned=True)
    given = report(cell, Cell("killed", "asyncpg", "it hangs"))
    head, first, second = all_figures(given)
    assert len(head) == len(first) == len(second) == len(HEADS) + 2
    assert dict(zip(HEADS[:7], first[2:9], strict=True))["fair again"] == "never"
    assert figures(given["cells"][1])[0] == "it hangs"
    assert list(notes(given)) == [f"{ROWS['killed'].title}, asyncpool, reads: 2 PoolTimeout"]


def test_of_a_cell_that_was_measured_twice_the_later_run_counts() -> None:
    """Rows and pools are in their order, whichever file has them."""
    first = report(Cell("killed", "asyncpool", reads=1), Cell("paused", "asyncpg"))
    second = report(Cell("balance", "asyncpg"), Cell("killed", "asyncpool", reads=2))
    merged = merge([first, second], tuple(ROWS), tuple(PEERS))
    places = [(each["row"], each["pool"], each["reads"]) for each in merged["cells"]]
    assert places == [
        ("balance", "asyncpg", 0),
        ("killed", "asyncpool", 2),
        ("paused", "asyncpg", 0),
    ]
    assert list(merged["rows"]) == ["balance", "killed", "paused"]
    assert merged["pools"] == ["asyncpool", "asyncpg"]


def test_only_what_is_between_the_marks_of_the_page_is_replaced(tmp_path: Path) -> None:
    """A page without marks is refused."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    write(report(Cell("killed", "asyncpool", reads=9)), page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n| row | pool |")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "stale\n" not in text.splitlines(keepends=True)
    page.write_text("text\n")
    with pytest.raises(ValueError, match="has no"):
        write(report(Cell("killed", "asyncpool")), page)
