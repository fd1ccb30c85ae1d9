"""The fault matrix: ours loses no request that could have been served, whatever happens.

Faults are short here and several are played at once, so that no verdict is about time.
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

from benchmarks.faults._stage import Seen
from benchmarks.faults._verdict import judge

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("asyncpg", "matplotlib", "psycopg_pool", "rich", "sqlalchemy", "typer")
MISSING = [name for name in NEEDED if find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX"),
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
"""Faults of which an idle connection has no sign until one is used, which costs a request."""
SIZE = 4
TIMES = {"password", "database"}
"""Where requests wait so briefly that a slow machine may be too late when all is well again."""

Cells = dict[tuple[str, str], dict[str, Any]]


def run(folder: Path, *options: str) -> tuple[Cells, str]:
    """What the command finds, and the page that it writes."""
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
    return {(each["scene"], each["pool"]): each for each in cells}, page.read_text()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every fault, for asyncpool alone."""
    cells, _ = run(tmp_path_factory.mktemp("faults"), "--pools", "asyncpool")
    return list(cells.values())


def done(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that this machine could play."""
    return [each for each in cells if each["status"] != "not run here"]


def test_every_fault_is_played_or_says_what_is_missing(ours: list[dict[str, Any]]) -> None:
    """None hangs; what needs root, `nft` or PgBouncer may be left out."""
    assert len(ours) == 22
    assert [each for each in ours if each["status"] == "hung"] == []
    assert all(each["reason"] for each in ours if each["status"] != "done")
    assert all(each["requests"] > 50 for each in done(ours))


def test_no_request_fails_that_could_be_served(ours: list[dict[str, Any]]) -> None:
    """Neither by an error nor by a limit that it reached; one that hangs would count as well."""
    bad = {each["scene"]: each["errors"] for each in done(ours) if each["avoidable"]}
    for scene in NO_SIGN:
        assert sum(bad.pop(scene, {}).values()) <= 1
    for scene in TIMES:
        bad.pop(scene, None)
    assert bad == {}


def test_what_is_acknowledged_is_in_the_ledger_once(ours: list[dict[str, Any]]) -> None:
    """Whatever broke in the middle."""
    assert {each["scene"]: (each["lost"], each["twice"]) for each in done(ours)} == {
        each["scene"]: (0, 0) for each in done(ours)
    }


def test_no_backend_is_left_after_close(ours: list[dict[str, Any]]) -> None:
    """And `close()` ends, without an error."""
    assert [each for each in done(ours) if each["left"]] == []
    assert [each for each in done(ours) if each["close"] is None or each["reason"]] == []


def test_there_are_never_more_backends_than_the_pool_may_have(ours: list[dict[str, Any]]) -> None:
    """Where the server can tell: of a client that a firewall has cut off it hears nothing."""
    most = {each["scene"]: each["most"] for each in done(ours)}
    assert {scene: count for scene, count in most.items() if count > SIZE} in (
        {},
        {"rejected": most.get("rejected")},
    )


def test_every_pool_has_its_place_on_the_page(tmp_path: Path) -> None:
    """In a table a measure between the marks, with the picture beside it."""
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
    assert "They balance in every cell." in page
    assert page.count("| all idle backends terminated |") == 5
    order = list(dict.fromkeys(pool for _, pool in cells))
    assert f"| {' | '.join(order)} |" in page
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_fault_is_refused() -> None:
    """With the names there are."""
    command = [sys.executable, "-m", "benchmarks.faults", "--faults", "kill,tickle"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "tickle" in told.stderr


def request(number: int, due: float, borrowed: float | None, ended: float, outcome: str) -> Any:
    """As a worker tells of one."""
    return [number, "write", due, borrowed, ended, outcome, "" if outcome == "ok" else "Error"]


def test_a_failure_is_excused_only_by_what_no_pool_could_help() -> None:
    """A connection that broke in use, an outage longer than the limit, a server that refused."""
    seen = Seen(strikes=[(1.0, 1.1)], outages=[(2.0, 6.0)], errors=[(10.0, 11.0)], back=11.0)
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
    seen.finished = {"requests": excused + not_excused, "close": 0.1, "close_error": ""}
    cell = judge("scene", "pool", seen, limit=3.0, size=4)
    assert (cell.failed, cell.avoidable) == (6, 3)


def test_the_books_tell_what_is_lost_from_what_is_unknown() -> None:
    """Acknowledged and missing, twice there, and there although its request failed."""
    requests = [request(number, 0.0, 0.1, 0.2, "ok") for number in (1, 2, 3)]
    requests.append(request(4, 0.0, 0.1, 0.2, "failed"))
    seen = Seen(ledger=[1, 2, 2, 4])
    seen.finished = {"requests": requests, "close": 0.1, "close_error": ""}
    cell = judge("scene", "pool", seen, limit=3.0, size=4)
    assert (cell.lost, cell.twice, cell.unknown, cell.balanced) == (1, 1, 1, False)


def test_a_pool_is_whole_once_nothing_fails_or_waits_for_long_any_more() -> None:
    """Counted from the end of the fault to the first that is served after the last bad one."""
    requests = [
        request(1, 10.0, 10.0, 10.1, "ok"),
        request(2, 10.2, None, 10.3, "failed"),
        request(3, 10.4, 11.9, 12.0, "ok"),  # it has waited for longer than a second
        request(4, 12.1, 12.1, 12.2, "ok"),
    ]
    seen = Seen(back=10.0)
    seen.finished = {"requests": requests, "close": 0.1, "close_error": ""}
    assert judge("scene", "pool", seen, limit=3.0, size=4).whole == pytest.approx(2.0)
    seen.finished["requests"] = requests[:2]
    assert judge("scene", "pool", seen, limit=3.0, size=4).whole is None
