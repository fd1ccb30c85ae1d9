"""The benchmarks run: every row with tiny numbers. What they find is no matter here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _pgbench
from benchmarks._plan import LOADED, Plan
from benchmarks._rounds import Bench

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["aiopg", "asyncpg", "matplotlib", "psqlpy", "psycopg_pool", "rich"]
NEEDED += ["sqlalchemy", "typer", "uvloop"]
MISSING = [name for name in NEEDED if find_spec(name) is None]

SOME = {"asyncpool", "asyncpool-psycopg-wait", "psycopg_pool", "asyncpg", "asyncpg-no-reset"}
"""Those with a COPY and one-shots."""
POOLS = SOME | {"psqlpy", "sqlalchemy", "aiopg"}
FIGURES = {
    "cycle",
    "handover-few",
    "handover-many",
    "handover-growth",
    "select-autocommit",
    "select-transaction",
    "key-autocommit",
    "key-transaction",
    "oneshot-constant",
    "oneshot-key",
    "oneshot-hundred",
    "oneshot-write",
    "oneshot-far",
    "transaction",
    "twenty",
    "fetch",
    "copy-out",
    "copy-in",
    "latency",
    "null",
    "opening-near",
    "opening-far",
    "memory",
    "scale-connections",
    "scale-connections-use",
    "scale-connections-memory",
    "scale-pools",
    "scale-pools-use",
    "scale-pools-memory",
}
FIGURES |= {f"{each}-cpu" for each in FIGURES if each.startswith(LOADED)}

NO_PGBENCH = "pgbench is left out: there is no such program"

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX"),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: pip install --group bench",
    ),
]


def pools_with(figure: str) -> set[str]:
    """The pools that have a figure: psqlpy has one-shots, but no COPY of text."""
    if figure.startswith("oneshot"):
        return SOME | {"psqlpy"}
    if figure.startswith("null"):
        return {name for name in POOLS if name.startswith(("asyncpool", "psycopg_pool"))}
    return SOME if figure.startswith("copy") else POOLS


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """The command, from the root of the project."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--tiny", *options],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "130"},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def outcome(
    asyncpool_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], bytes]:
    """Return what a run of all rows printed, its JSON and its picture."""
    folder = tmp_path_factory.mktemp("benchmarks")
    files = ("--json", str(folder / "figures.json"), "--picture", str(folder / "picture.svg"))
    done = run("--rounds", "2", "--dsn", asyncpool_dsn, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "figures.json").read_text())
    return done.stdout, report, (folder / "picture.svg").read_bytes()


def test_every_pool_has_every_figure_on_both_loops(
    outcome: tuple[str, dict[str, Any], bytes],
) -> None:
    """No pool fails; those without a COPY or one-shots of their own are left out of those."""
    _, report, _ = outcome
    assert [note for note in report["notes"] if note != NO_PGBENCH] == []
    found = {
        (record["loop"], record["figure"], record["pool"])
        for record in report["results"]
        if record["pool"] in POOLS
    }
    assert found == {
        (loop, figure, pool)
        for loop in ("asyncio", "uvloop")
        for figure in FIGURES
        for pool in pools_with(figure)
    }


def test_each_record_has_its_samples_spread_and_ratios(
    outcome: tuple[str, dict[str, Any], bytes],
) -> None:
    """The quartiles are in order; a pool is once as good as itself."""
    _, report, _ = outcome
    for record in report["results"]:
        assert record["samples"]
        assert all(math.isfinite(value) for value in record["samples"])
        assert record["p25"] <= record["median"] <= record["p75"]
        itself = {
            "psycopg_pool": "times_better_than_psycopg_pool",
            "asyncpool": "asyncpool_times_better",
        }
        if record["unit"] != "ratio" and (key := itself.get(record["pool"])):
            assert record[key]["median"] == 1


def test_the_cycle_stands_beside_its_yardsticks(
    outcome: tuple[str, dict[str, Any], bytes],
) -> None:
    """Two bare deques, and the pair of calls."""
    _, report, _ = outcome
    pools = {each["pool"] for each in report["results"] if each["figure"] == "cycle"}
    assert pools - POOLS == {
        "asyncpool acquire/release",
        "bare deque, class",
        "bare deque, @asynccontextmanager",
    }


@pytest.mark.skipif(_pgbench.find() is None, reason="pgbench not found")
def test_pgbench_stands_beside_the_select_with_our_share_of_its_rate(
    outcome: tuple[str, dict[str, Any], bytes],
) -> None:
    """Both of its protocols have a turn in each round, on both loops."""
    printed, report, _ = outcome
    found = {
        (record["loop"], record["figure"], record["pool"])
        for record in report["results"]
        if record["pool"].startswith("pgbench") and record["asyncpool_times_better"]
    }
    assert found == {
        (loop, figure, f"pgbench -M {mode}")
        for loop in ("asyncio", "uvloop")
        for figure in ("select-autocommit", "oneshot-constant")
        for mode in ("prepared", "simple")
    }
    assert "of the rate of pgbench -M prepared" in " ".join(printed.split())


def test_a_machine_without_pgbench_gets_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """The note is that of a pool that is not installed."""
    monkeypatch.setattr(_pgbench, "find", lambda: None)
    plan = Plan(dsn="", loop="asyncio", rows=[], pools=[], rounds=1, seed=0)
    bench = Bench(plan, {}, lambda _: None)
    assert _pgbench.turns(bench, "select-autocommit") == {}
    assert bench.notes == [NO_PGBENCH]


def test_pgbench_has_the_connection_string_from_its_environment() -> None:
    """The password is in no argument."""
    assert _pgbench.environment("host=there port=5433 user=me password=secret dbname=app") == {
        "PGHOST": "there",
        "PGPORT": "5433",
        "PGUSER": "me",
        "PGPASSWORD": "secret",
        "PGDATABASE": "app",
    }


def test_the_report_names_the_machine_and_never_the_password(
    outcome: tuple[str, dict[str, Any], bytes],
) -> None:
    """Figures without their machine are worth nothing; the DSN is nobody's business."""
    printed, report, picture = outcome
    assert {"cpu", "python", "postgresql", "psycopg", "asyncpg"} <= report["facts"].keys()
    assert report["facts"]["postgresql"] in " ".join(printed.split())
    assert "dsn" not in report["settings"]
    assert b"<svg" in picture


def test_an_unknown_row_is_refused() -> None:
    """With the names there are."""
    done = run("--rows", "cycle,tricycle")
    assert done.returncode == 2
    assert "tricycle" in done.stderr
