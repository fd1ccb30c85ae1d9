"""What the web benchmark reads from load generators, and what it writes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.web._generator import Load, LoadFailed, parse_k9, parse_wrk
from benchmarks.web._page import BEGIN, END, tables, write

WRK = """Running 2s test @ http://127.0.0.1:8123/row
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.50ms    2.61ms  23.84ms   89.91%
    Req/Sec     1.96k   510.83     2.50k    63.64%
  Latency Distribution
     50%  850.00us
     75%    2.82ms
     90%    5.14ms
     99%    1.09s
  2145 requests in 1.10s, 1.74MB read
Requests/sec:   1949.62
Transfer/sec:      1.58MB
"""


def k9(failed: int) -> str:
    return json.dumps(
        {
            "metrics": {
                "http_reqs": {"count": 2008.0, "rate": 1968.5},
                "http_req_failed": {"passes": failed, "fails": 2008 - failed},
                "http_req_duration": {"med": 0.75, "p(99)": 8.25},
            }
        }
    )


def report(**rates: float) -> dict[str, Any]:
    """A report of one test, in which the CPU time a request is that of the whole time."""
    figures = {
        "rate": {pool: [rate, rate * 1.1] for pool, rate in rates.items()},
        "cpu": {pool: [1e6 / rate, 1e6 / rate] for pool, rate in rates.items()},
    }
    figures |= {key: {pool: [1.0, 2.0] for pool in rates} for key in ("p50", "p99")}
    return {
        "facts": {"cpu": "a", "python": "b", "postgresql": "c"},
        "settings": {"pools": list(rates), "rounds": 2, "seconds": 1, "size": 2, "clients": 4},
        "tests": {"row": "one row"},
        "samples": {f"row-{key}": values for key, values in figures.items()},
        "notes": [],
    }


def test_the_figures_of_wrk_are_in_seconds() -> None:
    """Whatever their units."""
    assert parse_wrk(WRK) == Load(rate=1949.62, p50=850e-6, p99=1.09)


@pytest.mark.parametrize(
    "line",
    [
        "  Non-2xx or 3xx responses: 12",
        "  Socket errors: connect 0, read 0, write 0, timeout 3",
    ],
)
def test_answers_that_wrk_calls_failed_give_no_figures(line: str) -> None:
    """A server that refuses at once would be the fastest."""
    with pytest.raises(LoadFailed, match=line.strip()):
        parse_wrk(WRK.replace("Requests/sec", f"{line}\nRequests/sec"))


def test_output_without_percentiles_is_an_error() -> None:
    """It is not read as zero."""
    with pytest.raises(LoadFailed, match="no figures"):
        parse_wrk("Requests/sec:   1949.62")


def test_the_figures_of_k9_are_in_seconds() -> None:
    """Its summary has milliseconds."""
    assert parse_k9(k9(0)) == Load(rate=1968.5, p50=0.75e-3, p99=8.25e-3)


def test_answers_that_k9_calls_failed_give_no_figures() -> None:
    """Its `passes` are the requests for which "failed" is true."""
    with pytest.raises(LoadFailed, match="12 answers"):
        parse_k9(k9(12))


def test_twice_the_requests_at_half_the_cpu_time_are_twice_as_good() -> None:
    """Both ratios are above one where asyncpool is better."""
    ratio_table, figures = tables(report(asyncpool=2000, asyncpg=1000))
    assert ratio_table.splitlines()[-2:] == [
        "| one row: requests/s | 2.00 (2.00..2.00) |",
        "| one row: CPU | 2.00 (2.00..2.00) |",
    ]
    assert figures.splitlines()[-1] == (
        "|  | asyncpg | 1,050 (1,025..1,075) | 1.5 ms | 1.5 ms | 1,000 µs |"
    )


def test_a_run_of_other_pools_has_no_ratios() -> None:
    """And no table of them, but the figures."""
    assert len(tables(report(asyncpg=1000))) == 1


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib not found")
def test_only_what_is_between_the_marks_of_the_page_is_replaced(tmp_path: Path) -> None:
    """The picture is beside the page."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(report(asyncpool=2000, asyncpg=1000), page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n| asyncpool |")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert (tmp_path / "web.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    """Nothing of it is lost."""
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="has no"):
        write(report(asyncpool=2000), page)
    assert page.read_text() == "text\n"
