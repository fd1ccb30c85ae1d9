"""The overload benchmark: each pool plays its requests, and a tiny run has every figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from benchmarks.overload._page import BEGIN, END, FIGURES, PAGE, PICTURE
from benchmarks.overload._peers import CREATE, DROP, PEERS, Peer, make
from benchmarks.overload._play import Play, capacity
from benchmarks.overload._rows import OURS, ROWS, SIZE, Caller, Row, Stream
from benchmarks.overload._schedule import Request, spans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["asyncpg", "matplotlib", "psycopg_pool", "rich", "sqlalchemy", "typer"]
MISSING = [name for name in NEEDED if find_spec(name) is None]

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX"),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: pip install --group bench",
    ),
]


@pytest.fixture
async def hot_row(asyncpool_dsn: str) -> AsyncIterator[None]:
    """The table with the hot row."""
    async with await psycopg.AsyncConnection.connect(asyncpool_dsn, autocommit=True) as conn:
        await conn.execute(CREATE)
        yield
        await conn.execute(DROP)


@pytest.fixture(params=list(PEERS))
async def peer(request: pytest.FixtureRequest, asyncpool_dsn: str) -> AsyncIterator[Peer]:
    """Each pool, with a limit of 0.3 s."""
    found = make(request.param, asyncpool_dsn, 0.3)
    await found.open()
    yield found
    await found.close()


def only(deadline: float, **options: Any) -> Row:
    return Row("only", "only", (Stream("all", 1.0, deadline),), **options)


async def outcomes(peer: Peer, row: Row, uses: list[float]) -> list[str]:
    """Play requests that come at once; return what became of them."""
    requests = [Request(row.streams[0], 0.0, use) for use in uses]
    await Play(peer, row, spans(row.phases(1.0))).run(requests)
    assert all(each.ended >= each.started >= 0 for each in requests)
    return [each.outcome for each in requests]


async def test_a_request_is_answered_or_reaches_its_time_limit(peer: Peer) -> None:
    """While the connections are in use for longer than the limit, none is free for others."""
    found = await outcomes(peer, only(0.3), [0.8] * SIZE + [0.0] * 5)
    assert found[:SIZE] == ["answered"] * SIZE
    assert set(found[SIZE:]) <= {"timed out", "refused"}


@pytest.mark.parametrize("caller", [Caller.CANCEL, Caller.WITHIN])
async def test_a_cancelled_request_is_over_at_its_deadline(peer: Peer, caller: Caller) -> None:
    """Even if it has a connection; one that only tells its deadline goes on."""
    found = await outcomes(peer, only(0.2, caller=caller), [0.6])
    assert found == ["timed out" if caller is Caller.CANCEL else "answered"]


async def test_the_hot_row_is_updated_by_each_pool(
    peer: Peer, asyncpool_dsn: str, hot_row: None
) -> None:
    """And what it has updated is committed."""
    row = Row("hot", "hot", (Stream("hot", 1.0, hot=True),))
    assert await outcomes(peer, row, [0.0] * 5) == ["answered"] * 5
    async with await psycopg.AsyncConnection.connect(asyncpool_dsn) as conn:
        assert await (await conn.execute("SELECT n FROM overload_hot")).fetchone() == (5,)


async def test_the_capacity_is_that_of_all_connections(peer: Peer) -> None:
    """Not more than the uses allow, and a tenth of that on a machine that is busy otherwise."""
    most = SIZE / 0.05
    assert most / 10 < await capacity(peer, (0.05,), 0.5, Random(1)) < 1.1 * most


@pytest.mark.parametrize("name", ["asyncpool-refuse", "asyncpg"])
async def test_one_shots_are_played_too(name: str, asyncpool_dsn: str) -> None:
    """By the pools that have some; they reach their limits as blocks do."""
    pool = make(name, asyncpool_dsn, 30.0)
    await pool.open()
    try:
        found = await outcomes(pool, only(0.3, one_shot=True), [0.0] * 3 + [0.8] * SIZE + [0.0])
        assert found[:3] == ["answered"] * 3
        assert set(found[3:]) <= {"timed out", "refused"}
    finally:
        await pool.close()


async def test_turns_leave_connections_to_others(asyncpool_dsn: str, hot_row: None) -> None:
    """Twenty requests for the hot row use one connection of ten at a time."""
    pool = make("asyncpool-wait", asyncpool_dsn, 30.0)
    await pool.open()
    hot, others = Stream("hot", 1.0, 10.0, hot=True), Stream("others", 1.0, 10.0)
    row = Row("turns", "turns", (hot, others), Caller.WITHIN, turn=True)
    requests = [Request(hot, 0.0, 0.05) for _ in range(20)]
    requests += [Request(others, 0.01, 0.0) for _ in range(20)]
    try:
        await Play(pool, row, spans(row.phases(1.0))).run(requests)
    finally:
        await pool.close()
    assert {each.outcome for each in requests} == {"answered"}
    assert max(each.ended for each in requests[20:]) < max(each.ended for each in requests[:20]) / 2


def test_a_tiny_run_has_every_figure_of_every_pool(asyncpool_dsn: str, tmp_path: Path) -> None:
    """One command writes the figures, the pages and the picture; the DSN is in none of them."""
    for name in (PAGE, FIGURES):
        (tmp_path / name).write_text(f"{BEGIN}\n{END}\n")
    rows = ("load-3", "hot-turn", "cost")
    files = ("--json", str(tmp_path / "figures.json"), "--write", "--folder", str(tmp_path))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.overload", "--tiny"),
            *("--rows", ",".join(rows), "--dsn", asyncpool_dsn, *files),
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
    assert cells.keys() == {
        (row, pool) for row in rows for pool in PEERS if row != "hot-turn" or pool in OURS
    }
    assert [each["reason"] for each in cells.values() if each["reason"]] == []
    for (row, _), cell in cells.items():
        if row == "cost":
            assert cell["cost"] is not None
        else:
            assert cell["offered"] > 0
            total = sum(cell[share] for share in ("good", "late", "refused", "timed_out"))
            assert total == pytest.approx(1.0)
    for name in (PAGE, FIGURES):
        assert ROWS["load-3"].title in (tmp_path / name).read_text()
    assert (tmp_path / PICTURE).exists()
    assert "password" not in json.dumps(report)
