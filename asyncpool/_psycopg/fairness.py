"""A pause for other tasks in a COPY or stream() that never has to wait."""

from __future__ import annotations

from asyncio import sleep
from time import monotonic
from typing import Any

from asyncpool._psycopg.operation import BUSY_TIME
from asyncpool._psycopg.transport import Transport

_last_yield = 0.0
"""Monotonic time at which work that never waits last yielded to the event loop."""


async def yield_if_busy(transport: Transport, conn: Any) -> None:
    """Yield to other tasks between two steps of a COPY or stream(), if it has run for long.

    No other operation that need not wait yields here. It may have taken effect already, such as a
    change of the mode, and a caller that is cancelled here would not know.
    """
    global _last_yield  # noqa: PLW0603 - one loop, one clock
    if monotonic() - _last_yield < BUSY_TIME:
        return
    _last_yield = monotonic()
    try:
        await sleep(0)
    except BaseException:
        transport.interrupt(conn)
        raise
    _last_yield = monotonic()
