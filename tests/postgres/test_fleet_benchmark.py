"""The fleet benchmark: a short run has every figure, and its pages have no password."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet._figures import jain
from benchmarks.fleet._page import BEGIN, END, FIGURES, PAGE
from benchmarks.fleet._peers import PEERS
from benchmarks.fleet._rows import PLACES, ROWS, Action
from benchmarks.fleet._tables import merge, newcomers

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["asyncpg", "psycopg_pool", "rich", "typer"]
MISSING = [name for name in NEEDED if find_spec(name) is None]

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX"),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: pip install --group bench",
    ),
]


def test_jains_index_is_one_if_all_have_the_same() -> None:
    """If one of n has all, it is 1 / n; without any answer there is none."""
    assert jain([7, 7, 7]) == 1
    assert jain([0, 9, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) is None


def test_newcomers_without_an_answer_are_counted() -> None:
    """The times are those of the others."""
    assert newcomers([0.2, None, 1.04]) == "1 of 3 none, else 0.2 to 1.0 s"
    assert newcomers([None, None]) == "none of 2"
    assert newcomers([0.25, 0.5]) == "0.2 to 0.5 s"
    assert newcomers([]) == ""


def test_the_rows_are_in_the_order_of_time() -> None:
    """Nothing happens after the end, and who is measured has been started."""
    for row in ROWS.values():
        times = [step.at for step in row.steps]
        assert times == sorted(times)
        assert times[-1] + row.measured <= row.seconds
        started = {
            each for step in row.steps if step.action is Action.BUSY for each in step.members
        }
        assert started >= {*row.busy, *row.newcomers}
        assert started == set(range(row.members))


def test_of_two_runs_of_a_cell_the_last_counts() -> None:
    """Rows and pools keep their order. Of CPU times the least counts."""
    cost = {"direct": {"connect": 0.003}}
    first: dict[str, Any] = {"rows": {"a": "A", "b": "B"}, "peers": ["x"], "cost": cost}
    first["cells"] = [{"row": "b", "pool": "x"}]
    again = first | {"cells": [{"row": "b", "pool": "x", "rate": 2.0}, {"row": "a", "pool": "x"}]}
    merged = merge([first, again], ("a", "b"))
    assert merged["cells"] == [{"row": "a", "pool": "x"}, {"row": "b", "pool": "x", "rate": 2.0}]
    runs: list[dict[str, Any]] = [
        {
            "rows": {"alone": ""},
            "peers": ["x"],
            "cost": {"direct": {"connect": cpu}},
            "cells": [{"row": "alone", "pool": "x", "cpu": cpu}],
        }
        for cpu in (2.0, 1.0, 3.0)
    ]
    merged = merge(runs, ("alone",))
    assert merged["cells"] == [{"row": "alone", "pool": "x", "cpu": 1.0}]
    assert merged["cost"] == {"direct": {"connect": 1.0}}


def test_a_short_run_has_every_figure_of_every_pool(tmp_path: Path) -> None:
    """One command writes the figures and the page."""
    for name in (PAGE, FIGURES):
        (tmp_path / name).write_text(f"before {BEGIN}\n{END} after")
    files = ("--json", str(tmp_path / "figures.json"), "--write", "--folder", str(tmp_path))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.fleet", "--scale", "0.2"),
            *("--rows", "late-busy", *files),
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    cells = {(each["row"], each["pool"]): each for each in report["cells"]}
    assert cells.keys() == {("late-busy", pool) for pool in PEERS}
    assert [each["reason"] for each in cells.values() if each["reason"]] == []
    for (_, pool), cell in cells.items():
        assert 0 < cell["most"] <= cell["places"] == PLACES
        assert len(cell["newcomers"]) == 3
        assert cell["connects"] > 0
        assert cell["left"] == cell["hung"] == 0, pool
    pages = [(tmp_path / name).read_text() for name in (PAGE, FIGURES)]
    for page in pages:
        assert page.startswith("before ")
        assert page.endswith(" after")
        assert "| asyncpool-fleet |" in page
        assert "password" not in page + done.stdout + done.stderr
