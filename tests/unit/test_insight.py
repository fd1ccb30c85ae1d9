"""What is told of the requests adds up in every moment."""

from __future__ import annotations

import asyncio

import pytest

from asyncpool._insight import snapshot
from asyncpool.errors import PoolTimeout
from tests.unit._tools import Driver, lose, running, settle, virtual_time


@virtual_time
async def test_a_request_that_waits_again_has_queued_once() -> None:
    """It was served a connection that was lost in the same tick."""
    async with running(Driver(), 1, 1) as core:
        conn = await core.acquire(None)
        waiting = asyncio.create_task(core.acquire(None))
        await settle()
        core.release(conn)
        lose(conn)
        await waiting
        stats = snapshot(core)
        assert (stats.requests, stats.requests_queued) == (2, 1)
