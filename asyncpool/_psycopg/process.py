"""A pool that has outlived the process or the event loop that it was opened in.

After a fork the sessions are the parent's: they are kept as they are, and never spoken to. Where
the loop has ended they are the pool's own: the first use on another loop ends them, each task of
the pool where it stands, and nothing runs on the dead loop. Either way the pool gets a new core,
which its next use, or `open()`, opens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from functools import partial
from typing import Any, Protocol

import anyio

from asyncpool._core.pool import Core
from asyncpool._core.settings import Settings
from asyncpool._core.store import outcome
from asyncpool._psycopg.driver import ACT, PsycopgDriver

_pools: weakref.WeakSet[SupportsRenewal[Any]] = weakref.WeakSet()
_inherited: list[object] = []
"""Connections of the parent in a forked child: kept alive, lest closing them ends its sessions."""


class SupportsRenewal(Protocol[ACT]):
    """What is needed of a pool."""

    name: str
    _core: Core[ACT]
    _driver: PsycopgDriver[ACT]
    _settings: Settings
    _forked: bool

    def _renew(self) -> None: ...


def forks_with(pool: SupportsRenewal[Any]) -> None:
    """Have a forked child give up the parent's sessions."""
    _pools.add(pool)


def has_outlived(core: Core[Any]) -> bool:
    """Whether the loop that it was opened on is closed."""
    return core.home is not None and core.home.is_closed()


def start_over(pool: SupportsRenewal[ACT]) -> set[asyncio.Task[Any]]:
    """Give up what it had on a loop that is closed; it is as if never opened.

    It is a log's WARNING, not a ResourceWarning: whoever uses the pool next need not be who left
    it open, and where warnings are errors that would be an error of theirs.

    Returns:
        The tasks that end, on the running loop, what the server is busy with.
    """
    old, driver = pool._core, pool._driver
    leased, closed = set(old.ledger.leased), old.closed
    conns = old.abandon_all()
    pool._renew()
    core = pool._core
    if not closed:
        many = f"{len(conns)} connections, {len(leased)} of them leased, are given up"
        what = "was not closed before its event loop ended"
        core.store.record("left behind", f"{what}: {many}", logging.WARNING)
    tasks = set()
    for conn in conns:
        if conn in leased:
            core.left_behind.add(conn)
        else:
            conn._pool = None
        if driver.is_busy(conn):
            work = _close_within(driver, conn, core.settings.close_timeout)
            tasks.add(core.store.tasks.spawn(work, "close"))
        else:
            driver.drop(conn)
    return tasks


async def close_over(pool: SupportsRenewal[Any]) -> None:
    """The same for good, with an end to all that the server is busy with."""
    tasks = start_over(pool)
    pool._core.store.closing = True  # also where this is cancelled
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
        if core.opened and not core.closed:
            _inherited.extend([core, *core.abandon_all(forked=True)])
            pool._renew()
            pool._forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
