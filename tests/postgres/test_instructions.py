"""Instructions are counted under callgrind, if it is installed."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.instructions._callgrind import count

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind not found"),
]


async def test_a_path_has_the_instructions_of_one_run(asyncpool_dsn: str) -> None:
    """Neither Python's start nor the number of runs is in them: a cycle takes some 17,000."""
    counts = await count(asyncpool_dsn, ("cycle", "transaction of three statements"))
    assert 2_000 < counts["cycle"] < 100_000
    assert 5 * counts["cycle"] < counts["transaction of three statements"] < 5_000_000
