"""What users write passes a strict type checker, and does at run time what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

import asyncpool
from asyncpool import AsyncConnectionPool


def test_what_users_write_passes_mypy_in_strict_mode(tmp_path: Path) -> None:
    """Types are inferred as `assert_type` says, and no ignore is idle."""
    pytest.importorskip("mypy", reason="mypy comes with the extra `lint`")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"]
    options = ["--config-file=", f"--cache-dir={tmp_path}", str(here / "usage.py")]
    root = Path(asyncpool.__file__).parents[1]
    mypy = subprocess.run(
        [*command, *options], cwd=root, capture_output=True, text=True, check=False
    )
    assert mypy.returncode == 0, mypy.stdout + mypy.stderr


def test_the_package_says_that_it_is_typed() -> None:
    """By its marker file, without which type checkers ignore it."""
    assert (Path(asyncpool.__file__).parent / "py.typed").exists()


def test_a_pool_can_be_subscripted_at_run_time() -> None:
    """In annotations that are evaluated, and as a base class."""
    alias: Any = AsyncConnectionPool[psycopg.AsyncConnection[Any]]
    assert alias("").name.startswith("pool-")
