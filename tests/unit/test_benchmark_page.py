"""The tables that `python -m benchmarks --write` writes into the pages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks._numbers import results
from benchmarks._page import BEGIN, END, PAGE, PICTURE, README, budgets, pgbench, table, write

needs_matplotlib = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="matplotlib not found"
)


def report(samples: dict[str, dict[str, float]], loops: tuple[str, ...] = ("asyncio",)) -> Any:
    """A report with one sample of each pool, by the figure."""
    figures = [{"key": key, "title": f"the {key}", "unit": "µs"} for key in samples]
    found = [
        each
        for loop in loops
        for each in results(
            {
                "loop": loop,
                "figures": figures,
                "samples": {
                    key: {name: [n] for name, n in of.items()} for key, of in samples.items()
                },
            }
        )
    ]
    facts = {"cpu": "fast", "python": "3.14"}
    return {"figures": figures, "results": found, "facts": facts, "settings": {"rounds": 1}}


def test_each_row_has_the_ratios_to_all_pools() -> None:
    """On both loops; a pool that is not there has none."""
    given = {"cycle": {"asyncpool": 2.0, "psycopg_pool": 9.0, "aiopg": 2.1}}
    head, line = table(report(given, ("asyncio", "uvloop")))
    assert head[:3] == ["asyncio / uvloop", "asyncpool", "to psycopg_pool"]
    assert dict(zip(head, line, strict=True)) == {
        "asyncio / uvloop": "the cycle",
        "asyncpool": "2.0 µs",
        "to psycopg_pool": "4.5 / 4.5",
        "to asyncpg, no reset": "-",
        "to psqlpy": "-",
        "to SQLAlchemy": "-",
        "to aiopg": "1.05 / 1.05",
        "to psycopg's own wait": "-",
    }


@pytest.mark.parametrize(("time", "shown"), [(12.0, "6.0"), (11.0, "**5.5**")])
def test_what_is_missed_is_bold(time: float, shown: str) -> None:
    """A cycle is to be six times as fast as psycopg_pool's."""
    _, line = budgets(report({"cycle": {"asyncpool": 2.0, "psycopg_pool": time}}))
    assert line == ["acquire and release", "6 times psycopg_pool", shown]


def test_pgbench_is_compared_in_words() -> None:
    """It is no pool, so it has no column."""
    given = report({"select-autocommit": {"asyncpool": 4.0, "pgbench -c 10": 1.0}})
    assert list(pgbench(given)) == [
        "- the select-autocommit, asyncio: 25 % of the rate of `pgbench -c 10`"
    ]


@needs_matplotlib
def test_only_what_is_between_the_marks_of_the_pages_is_replaced(tmp_path: Path) -> None:
    """Of README and of the page; the picture is beside the page."""
    (tmp_path / "docs").mkdir()
    for name in (README, PAGE):
        (tmp_path / name).write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    write(report({"cycle": {"asyncpool": 2.0, "psycopg_pool": 9.0}}), tmp_path)
    for name in (README, PAGE):
        text = (tmp_path / name).read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "| the cycle | 2.0 µs | 4.5 |" in text
        assert "stale" not in text
    assert (tmp_path / PICTURE).exists()


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    """Nothing of either page is lost."""
    (tmp_path / "docs").mkdir()
    (tmp_path / README).write_text(f"{BEGIN}\nstale\n{END}\n")
    (tmp_path / PAGE).write_text("text\n")
    with pytest.raises(ValueError, match="has no"):
        write(report({"cycle": {"asyncpool": 2.0, "psycopg_pool": 9.0}}), tmp_path)
    assert "stale" in (tmp_path / README).read_text()
