"""The clock, background tasks, counters, events and phase of a pool, which all its parts use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from importlib import import_module

from asyncpool._core.background import BackgroundTasks
from asyncpool._core.counters import Counters
from asyncpool._core.events import Events, fields
from asyncpool._core.redact import describe

CLOCK_TOLERANCE = 0.01
"""Largest difference in seconds at which uvloop's clock counts as `time.monotonic`."""

logger = logging.getLogger("asyncpool")


class Phase(Enum):
    """The phase of a pool's life: first NEW or FORKED, then OPEN, then CLOSED."""

    NEW = "not open yet"
    FORKED = "opened before a fork"
    """In a forked child: not open yet, and only an explicit `open` opens it."""
    OPEN = "open"
    CLOSED = "closed"
    """`close` was called, or the pool was abandoned; its connections may still be closing."""


class Runtime:
    """The surroundings of the parts of one pool.

    Args:
        name: the name of the pool.
    """

    __slots__ = ("counters", "events", "name", "phase", "tasks", "time")

    def __init__(self, name: str) -> None:
        import_backend()
        self.name = name
        self.phase = Phase.NEW
        self.time: Callable[[], float] = time.monotonic
        """The clock: `loop.time()`, or one that agrees with it. Before `open`, that of asyncio."""
        self.tasks = BackgroundTasks(name)
        self.counters = Counters()
        self.events = Events()

    def now(self) -> float:
        """Return the current instant; the method stays the same when the clock changes."""
        return self.time()

    @property
    def closed(self) -> bool:
        """Whether no connection enters service any more."""
        return self.phase is Phase.CLOSED

    def record(self, kind: str, text: str, level: int = logging.INFO, **facts: object) -> None:
        """Log an event and keep it for `explain()`; see `Events.record`."""
        self.events.record(self.name, self.time(), kind, text, level, facts)

    def record_error(self, kind: str, error: BaseException, level: int = logging.INFO) -> None:
        """Record that work on a connection has failed."""
        said = describe(error)
        self.record(kind, f"{kind}: {said}", level, error=said)

    def log_exception(self, kind: str, text: str) -> None:
        """Log the exception that is being handled, with its traceback."""
        logger.exception("pool %r: %s", self.name, text, extra=fields(self.name, kind))


def clock_of_thread() -> Callable[[], float]:
    """Return the clock of the running event loop; without one, that of asyncio's loops."""
    loop = asyncio._get_running_loop()
    return time.monotonic if loop is None else clock_of(loop)


def import_backend() -> None:
    """Import what anyio imports at its first use, where it would hold up the event loop.

    That takes 20 ms. It is done when a pool is made, which is before there are requests, and not by
    `import asyncpool`. A thread is not used: a child that is forked meanwhile would wait for ever
    for the lock of the import.
    """
    with suppress(ImportError):
        import_module("anyio._backends._asyncio")


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the fastest and finest clock that agrees with `loop.time()`.

    asyncio's `time()` wraps `time.monotonic`, which alone costs half as much. uvloop's clock is the
    same, but in whole milliseconds; many leases are shorter than that.
    """
    clock = type(loop).time
    is_uvloops = getattr(clock, "__module__", "") == "uvloop.loop"
    agrees = is_uvloops and abs(loop.time() - time.monotonic()) < CLOCK_TOLERANCE
    return time.monotonic if agrees or clock is asyncio.BaseEventLoop.time else loop.time
