"""Code that users write passes a strict type checker and has these types at run time."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow

import asyncpool
from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool


@pytest.mark.exhaustive
def test_what_users_write_passes_mypy_in_strict_mode(tmp_path: Path) -> None:
    """Types are inferred as `assert_type` says, and no ignore is idle."""
    pytest.importorskip("mypy", reason="mypy comes with the dependency group `lint`")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"]
    options = ["--config-file=", f"--cache-dir={tmp_path}", str(here / "usage.py")]
    root = Path(asyncpool.__file__).parents[1]
    mypy = subprocess.run(
        [*command, *options], cwd=root, capture_output=True, text=True, check=False
    )
    assert mypy.returncode == 0, mypy.stdout + mypy.stderr


@pytest.mark.exhaustive
def test_what_users_write_passes_pyright(tmp_path: Path) -> None:
    """pyright infers mypy's types from the same file."""
    pytest.importorskip("pyright", reason="pyright comes with the dependency group `lint`")
    pyright = [sys.executable, "-m", "pyright"]
    version = subprocess.run([*pyright, "--version"], capture_output=True, check=False)
    if version.returncode != 0:
        pytest.skip("pyright's own program cannot be had: it needs node and npm's registry")
    here = Path(__file__).parent
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"include": [str(here / "usage.py")]}))
    options = ["--pythonpath", sys.executable, "--project", str(tmp_path)]
    root = Path(asyncpool.__file__).parents[1]
    result = subprocess.run(
        [*pyright, *options], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_package_says_that_it_is_typed() -> None:
    """By its marker file, without which type checkers ignore it."""
    assert (Path(asyncpool.__file__).parent / "py.typed").exists()


def test_a_pool_can_be_subscripted_at_run_time() -> None:
    """In annotations that are evaluated, and as a base class."""
    for kind in (AsyncConnectionPool, AsyncNullConnectionPool):
        alias: Any = kind[psycopg.AsyncConnection[DictRow]]
        assert alias("").name.startswith("pool-")
        assert types.new_class("Mine", (alias,))("").name.startswith("pool-")
