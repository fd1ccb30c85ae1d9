"""Tracers: as many spans as statements, in blocks and of one-shots, as on psycopg_pool.

Each tracer starts before the pool's library is imported, or after it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests._tools import few

from ._traced import EXPECTED
from ._tracers import TRACERS

NEVER = {"stream", "copy"}
"""What no tracer sees."""
UNSEEN = {
    "ddtrace": NEVER,
    "ddtrace.auto": NEVER,
    "elasticapm": {"conn_execute", *NEVER},
    "sentry": set(EXPECTED),
}
"""What a tracer does not see."""
SILENT = {"DD_INSTRUMENTATION_TELEMETRY_ENABLED": "0", "DD_REMOTE_CONFIGURATION_ENABLED": "0"}


def seen(tracer: str, order: str, library: str, dsn: str) -> dict[str, list[str]]:
    """Return the statements that a tracer sees, by the way in which they are run."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.libraries._traced", tracer, order, library, dsn],
        cwd=Path(__file__).parents[2],
        env=os.environ | SILENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    statements: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return statements


@pytest.mark.parametrize("order", few(["before", "after"]))
@pytest.mark.parametrize("tracer", few(TRACERS, len(TRACERS) - 2))
@pytest.mark.exhaustive
async def test_a_tracer_sees_each_statement(database: str, tracer: str, order: str) -> None:
    """It sees each once and nothing else, and in blocks what it sees on psycopg_pool."""
    if importlib.util.find_spec(TRACERS[tracer].library) is None:
        pytest.skip(f"{TRACERS[tracer].library} is not installed")
    ours, theirs = await asyncio.gather(
        *(
            asyncio.to_thread(seen, tracer, order, library, database)
            for library in ("asyncpool", "psycopg_pool")
        )
    )
    assert {name: ours[name] for name in theirs} == theirs
    unseen = UNSEEN.get(tracer, {"server_cursor", *NEVER})
    counts = {name: 0 if name in unseen else count for name, count in EXPECTED.items()}
    assert {name: len(statements) for name, statements in ours.items()} == counts
    assert not [each for name in ours for each in ours[name] if f"/*{name}*/" not in each]
