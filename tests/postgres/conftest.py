"""The connection string of one test, watched: whatever a test does, nothing of it may stay."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from psycopg.conninfo import make_conninfo

from asyncpool._psycopg import version
from asyncpool.testing import Server

from ._tools import Backends, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def application() -> str:
    """The application_name of this test's connections."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def backends(asyncpool_dsn: str, application: str) -> Backends:
    """The server's view of this test's connections."""
    return Backends(asyncpool_dsn, application)


@pytest.fixture
async def dsn(
    asyncpool_dsn: str,
    application: str,
    backends: Backends,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[str]:
    """The server, for a test after which no backend, no task and no crash of one may be left."""
    caplog.set_level(logging.INFO)
    yield make_conninfo(asyncpool_dsn, application_name=application)
    if version() < (3, 3):
        # A wait of psycopg's that is cancelled takes some turns of the loop to end.
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"tasks are left: {others}"
    await eventually(lambda: not backends.pids())
    records = caplog.get_records("call")
    assert [each.getMessage() for each in records if each.levelno >= logging.ERROR] == []


@pytest.fixture
async def server(asyncpool_server: Server, dsn: str) -> AsyncIterator[Server]:
    """The server for a test that stops, kills or pauses it: afterwards it runs again."""
    if asyncpool_server.source == "dsn":
        pytest.skip("a server that was given by its DSN is not ours to stop")
    yield asyncpool_server
    if asyncpool_server.state == "paused":
        await asyncpool_server.resume()
    if asyncpool_server.state == "stopped":
        await asyncpool_server.start()
