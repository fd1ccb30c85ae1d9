"""A database of its own for each scenario, and our pools in the place of psycopg_pool's.

The libraries are a dependency group of their own, `libraries`: without them these tests are
skipped. `.ci/run` runs them in an environment that has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import compat


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the libraries give warnings."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture
def database(asyncpool_dsn: str) -> Iterator[str]:
    """A database for one test, on which no session may be left."""
    name = f"library_{uuid4().hex[:12]}"
    with psycopg.connect(asyncpool_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
        yield make_conninfo(asyncpool_dsn, dbname=name)
        conn.execute(f"DROP DATABASE {name} (FORCE)")


@pytest.fixture
def installed() -> Iterator[None]:
    """Our pools in the place of psycopg_pool's."""
    compat.install()
    yield
    compat.uninstall()
