"""Functions that the event loop runs for a `ConnectionStore`, with weak references to it.

A connect that hangs, or a connection that somebody still has, must not keep a dropped pool alive.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import _get_running_loop as running_loop
from collections.abc import Coroutine
from typing import Any

from asyncpool._core.driver import C, Driver
from asyncpool._core.entry import Entry, State

Store = weakref.ref[Any]
"""A `ConnectionStore`, whose module imports this one."""


async def open_connection(store: Store, driver: Driver[C], entry: Entry[C]) -> None:
    """Open the connection of a new entry, and put the entry into service."""
    home = running_loop()
    try:
        conn = await driver.open()
    except BaseException as error:
        if (alive := store()) is not None:
            if isinstance(error, Exception):
                alive.outages.connect_failed(error, entry)
            alive.remove(entry, refill=isinstance(error, Exception))
            if not isinstance(error, Exception) and running_loop() is home:
                alive.outages.connect_cancelled(error, entry)
        if not isinstance(error, Exception):
            # The frames hold the socket, and asyncio.run() keeps the task until it is collected.
            error.__traceback__ = None
            raise
        return
    if (alive := store()) is not None and entry.state is State.OPENING:
        alive.opened(entry, conn)
    else:  # the pool was dropped, or was closed without waiting for this any longer
        await driver.close(conn)


def work_ended(store: Store, entry: Entry[C], work: Coroutine[Any, Any, object]) -> None:
    """Close the connection of an entry that a background task has left out of service.

    A task that is cancelled before its first step runs none of its code. This is called when a task
    has ended, and does nothing for an entry that is in service, removed, or a later task's.

    Args:
        store: the entry's store.
        entry: the entry for which the task was started.
        work: the coroutine of the task.
    """
    alive = store()
    if alive is None or alive._works.get(entry) is not work:
        return
    del alive._works[entry]
    if entry.state is State.OPENING:
        alive.remove(entry, refill=False)
        alive.outages.connect_cancelled(asyncio.CancelledError(), entry)
    elif entry.state is State.CLEANING:
        alive.discard(entry)
    elif entry.state is State.CLOSING and not alive.runtime.closed:  # else `abandon` closes it
        alive.close(entry)


def notify(
    store: Store,
    place: weakref.ref[Entry[C]],
    home: asyncio.AbstractEventLoop,
    error: BaseException | None = None,
    *,
    lost: bool = True,
) -> None:
    """Pass on the loss of a connection, or the error of a statement."""
    alive, entry = store(), place()
    if alive is None or entry is None or alive.runtime.closed:
        return
    if running_loop() is home:  # else the connection outlived its event loop
        alive.on_failure(entry, error, lost)
