"""The cluster benchmark on real servers, with tiny numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

from benchmarks._plan import ROOT
from benchmarks.cluster._page import BEGIN, END
from benchmarks.cluster._peers import PEERS, RETRY
from benchmarks.cluster._rows import ROWS


@pytest.mark.exhaustive
def test_a_tiny_run_has_every_figure_of_every_pool(tmp_path: Path) -> None:
    """One command writes the figures and the page; no password is in them."""
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(f"{BEGIN}\n{END}\n")
    rows = ("failover", "own")
    pools = [
        name for name in PEERS if name != RETRY and (name != "hasql" or find_spec(name) is not None)
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.cluster", "--tiny", "--rows", ",".join(rows)),
            *("--pools", ",".join(pools)),
            *("--json", str(figures), "--write", "--page", str(page)),
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(figures.read_text())
    cells = {(each["row"], each["pool"]): each for each in report["cells"]}
    assert cells.keys() == {
        (row, pool) for row in rows for pool in pools if pool in ROWS[row].pools
    }
    assert [each["reason"] for each in cells.values() if each["reason"]] == []
    for cell in cells.values():
        assert cell["reads"] > 0
        assert cell["lost"] == cell["double"] == 0
    assert ROWS["failover"].title in page.read_text()
    assert "password" not in json.dumps(report)
