"""A new core for a pool whose process has forked, or whose event loop is closed.

After a fork the sessions are the parent's: the child keeps their connections unused. After the end
of the event loop the sessions are the pool's: its first use on another loop ends them and the
pool's tasks, and runs nothing on the closed loop. In both cases the pool gets a new core, which its
next use or `open()` opens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from functools import partial
from typing import Any, Protocol

import anyio

from asyncpool._core.background import outcome
from asyncpool._core.pool import Core
from asyncpool._core.runtime import Phase
from asyncpool._psycopg.driver import ACT, PsycopgDriver

_pools: weakref.WeakSet[SupportsRenewal[Any]] = weakref.WeakSet()
_inherited: list[object] = []
"""The parent's connections in a forked child. To collect them would end the parent's sessions."""


class SupportsRenewal(Protocol[ACT]):
    """The parts of a pool that this module uses."""

    _core: Core[ACT]
    _driver: PsycopgDriver[ACT]

    def _renew(self) -> None:
        """Replace the core by one that was never opened."""


def register_for_forks(pool: SupportsRenewal[Any]) -> None:
    """Register a pool, so that a forked child abandons the parent's sessions."""
    _pools.add(pool)


def loop_has_ended(core: Core[Any]) -> bool:
    """Whether the event loop on which the core was opened is closed."""
    return core.home is not None and core.home.is_closed()


def renew(pool: SupportsRenewal[ACT]) -> set[asyncio.Task[Any]]:
    """Abandon the connections of a closed loop, and give the pool a core that was never opened.

    A pool that was not closed is logged as a WARNING. A ResourceWarning would become an error of
    the next user where warnings are errors, and that user may not be the one who left it open.

    Returns:
        Tasks on the running loop that end the sessions in which the server is still busy.
    """
    old, driver = pool._core, pool._driver
    leased, closed = set(old.ledger.leased), old.closed
    conns = old.abandon_all()
    pool._renew()
    core = pool._core
    if not closed:
        counts = f"{len(conns)} connections are abandoned, {len(leased)} of them in use"
        what = "was not closed before its event loop ended"
        core.runtime.record("left behind", f"{what}: {counts}", logging.WARNING)
    tasks = set()
    for conn in conns:
        if conn in leased:
            core.orphaned.add(conn)
        else:
            conn._pool = None
        if driver.is_busy(conn):
            work = _close_within(driver, conn, core.settings.close_timeout)
            tasks.add(core.runtime.tasks.spawn(work, "close"))
        else:
            driver.drop(conn)
    return tasks


async def close_after_loop_ended(pool: SupportsRenewal[Any]) -> None:
    """Replace the core and close the pool, after all that the server is busy with has ended."""
    tasks = renew(pool)
    pool._core.close_unopened()  # set first, so that a cancellation below does not prevent it
    if tasks:
        with anyio.CancelScope(shield=True):
            await asyncio.wait(tasks)


async def _close_within(driver: PsycopgDriver[ACT], conn: ACT, limit: float) -> None:
    try:
        with anyio.move_on_after(limit):
            await outcome(partial(driver.close, conn))
    finally:
        driver.drop(conn)


def _abandon_in_child() -> None:
    for pool in list(_pools):
        core = pool._core
        if core.runtime.phase is Phase.OPEN:
            _inherited.extend([core, *core.abandon_all(forked=True)])
            pool._renew()
            pool._core.mark_forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
