"""The fault benchmark: asyncpool fails no request that could have been served.

Faults are short here and several run at the same time, so no assertion is about time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults._figures import evaluate
from benchmarks.faults._trial import Observations

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("asyncpg", "matplotlib", "psycopg_pool", "rich", "sqlalchemy", "typer")
MISSING = [name for name in NEEDED if find_spec(name) is None]

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix", reason="starting servers needs POSIX"),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: pip install --group bench",
    ),
]

POOLS = {
    "asyncpool",
    "asyncpool-check",
    "psycopg_pool",
    "psycopg_pool-check",
    "asyncpg",
    "sqlalchemy",
    "sqlalchemy-pre-ping",
}
NO_SIGN = {"rejected"}
"""Faults that show no sign on an idle connection until it is used, which fails a request."""
SIZE = 4
TIMES = {"password", "database"}
"""Faults with a limit so short that a slow machine may exceed it after the fault."""

Cells = dict[tuple[str, str], dict[str, Any]]


def run(folder: Path, *options: str) -> tuple[Cells, str]:
    """Run the command; return its cells and the page that it wrote."""
    page, figures = folder / "page.md", folder / "figures.json"
    page.write_text("Before.\n<!-- faults: begin -->\nold\n<!-- faults: end -->\nAfter.\n")
    command = [sys.executable, "-m", "benchmarks.faults", "--quick", "--jobs", "4"]
    done = subprocess.run(
        [*command, "--json", str(figures), "--page", str(page), *options],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "ASYNCPOOL_TEST_DSN"},
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(figures.read_text())["cells"]
    return {(each["fault"], each["pool"]): each for each in cells}, page.read_text()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every fault, for asyncpool alone."""
    cells, _ = run(tmp_path_factory.mktemp("faults"), "--pools", "asyncpool")
    return list(cells.values())


def done(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells of the faults that this machine can cause."""
    return [each for each in cells if each["status"] != "not run here"]


def test_every_fault_runs_or_says_what_is_missing(ours: list[dict[str, Any]]) -> None:
    """None hangs; what needs root, `nft` or PgBouncer may be left out."""
    assert len(ours) == 22
    assert [each for each in ours if each["status"] == "hung"] == []
    assert all(each["reason"] for each in ours if each["status"] != "done")
    assert all(each["requests"] > 50 for each in done(ours))


def test_no_request_fails_that_could_be_served(ours: list[dict[str, Any]]) -> None:
    """Neither by an error nor by a limit that it reached; one that hangs would count as well."""
    bad = {each["fault"]: each["errors"] for each in done(ours) if each["avoidable"]}
    for fault in NO_SIGN:
        assert sum(bad.pop(fault, {}).values()) <= 1
    for fault in TIMES:
        bad.pop(fault, None)
    assert bad == {}


def test_what_is_acknowledged_is_in_the_ledger_once(ours: list[dict[str, Any]]) -> None:
    """This holds in each fault."""
    assert {each["fault"]: (each["lost"], each["duplicated"]) for each in done(ours)} == {
        each["fault"]: (0, 0) for each in done(ours)
    }


def test_no_backend_is_left_after_close(ours: list[dict[str, Any]]) -> None:
    """And `close()` ends, without an error."""
    assert [each for each in done(ours) if each["left"]] == []
    assert [each for each in done(ours) if each["close"] is None or each["reason"]] == []


def test_there_are_never_more_backends_than_the_pool_may_have(ours: list[dict[str, Any]]) -> None:
    """Except where a firewall rejects packets: the server cannot know that a client has gone."""
    most = {each["fault"]: each["most"] for each in done(ours)}
    assert {fault: count for fault, count in most.items() if count > SIZE} in (
        {},
        {"rejected": most.get("rejected")},
    )


def test_every_pool_has_its_place_on_the_page(tmp_path: Path) -> None:
    """In a table per figure between the marks, with the picture next to the page."""
    cells, page = run(tmp_path, "--faults", "idle-all,restart-fast")
    assert cells.keys() == {
        (fault, pool) for fault in ("idle-all", "restart-fast") for pool in POOLS
    }
    assert {each["status"] for each in cells.values()} == {"done"}
    for fault in ("idle-all", "restart-fast"):
        assert cells[fault, "asyncpool"]["failed"] == 0
    assert page.startswith("Before.\n<!--")
    assert page.endswith("-->\nAfter.\n")
    assert "old" not in page
    assert "every acknowledged number is in the ledger once." in page
    assert page.count("| all idle backends terminated |") == 5
    order = list(dict.fromkeys(pool for _, pool in cells))
    assert f"| {' | '.join(order)} |" in page
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_fault_is_refused() -> None:
    """The error names it."""
    command = [sys.executable, "-m", "benchmarks.faults", "--faults", "kill,tickle"]
    reply = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert reply.returncode == 2
    assert "tickle" in reply.stderr


def request(number: int, due: float, borrowed: float | None, ended: float, outcome: str) -> Any:
    """Return a request as the worker reports it."""
    return [number, "write", due, borrowed, ended, outcome, "" if outcome == "ok" else "Error"]


def test_a_failure_is_excused_only_by_what_no_pool_could_help() -> None:
    """A connection that broke in use, an outage longer than the limit, a server that refused."""
    observed = Observations(
        breaks=[(1.0, 1.1)], outages=[(2.0, 6.0)], refusals=[(10.0, 11.0)], fault_end=11.0
    )
    excused = [
        request(1, 0.9, 0.95, 1.05, "failed"),  # it was in use when it broke
        request(2, 2.5, None, 5.5, "failed"),  # its limit was up before the end of the outage
        request(3, 10.5, None, 10.6, "failed"),  # it was refused
    ]
    not_excused = [
        request(4, 1.15, 1.2, 1.3, "failed"),  # it was given what was broken before
        request(5, 4.0, None, 4.1, "failed"),  # it did not wait, and would have been served
        request(6, 3.5, None, 6.4, "failed"),  # it could have been served in time
    ]
    observed.finished = {"requests": excused + not_excused, "close": 0.1, "close_error": ""}
    cell = evaluate("fault", "pool", observed, limit=3.0, size=4)
    assert (cell.failed, cell.avoidable) == (6, 3)


def test_the_ledger_shows_what_is_lost_duplicated_or_unknown() -> None:
    """Acknowledged and missing, duplicated there, and there although its request failed."""
    requests = [request(number, 0.0, 0.1, 0.2, "ok") for number in (1, 2, 3)]
    requests.append(request(4, 0.0, 0.1, 0.2, "failed"))
    observed = Observations(ledger=[1, 2, 2, 4])
    observed.finished = {"requests": requests, "close": 0.1, "close_error": ""}
    cell = evaluate("fault", "pool", observed, limit=3.0, size=4)
    assert (cell.lost, cell.duplicated, cell.unknown, cell.consistent) == (1, 1, 1, False)


def test_a_pool_has_recovered_once_no_request_fails_or_waits_for_long() -> None:
    """Counted from the end of the fault to the first that is served after the last bad one."""
    requests = [
        request(1, 10.0, 10.0, 10.1, "ok"),
        request(2, 10.2, None, 10.3, "failed"),
        request(3, 10.4, 11.9, 12.0, "ok"),  # it has waited for longer than a second
        request(4, 12.1, 12.1, 12.2, "ok"),
    ]
    observed = Observations(fault_end=10.0)
    observed.finished = {"requests": requests, "close": 0.1, "close_error": ""}
    assert evaluate("fault", "pool", observed, limit=3.0, size=4).recovered == pytest.approx(2.0)
    observed.finished["requests"] = requests[:2]
    assert evaluate("fault", "pool", observed, limit=3.0, size=4).recovered is None
