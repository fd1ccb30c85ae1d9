"""A time limit that always holds, and an exit that does not wait for hanging threads.

The work runs in a thread of its own, since a name lookup or a call into a C library cannot be
cancelled, and the program must report within the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

import typer

T = TypeVar("T")

GRACE = 0.2
"""Seconds for which `end` waits for each thread."""


class TimeLimitReached(Exception):
    """The work has not finished; its thread still runs."""


def within(seconds: float, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` on an event loop of its own; return its result or raise its error.

    The caller must end the program by `end`.

    Raises:
        TimeLimitReached: the work did not finish within these seconds.
    """
    outcome: Future[T] = Future()

    async def run() -> None:
        # The outcome is set before the loop is closed, since closing it may take long.
        try:
            outcome.set_result(await work())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            outcome.set_exception(error)

    threading.Thread(target=asyncio.run, args=(run(),), name="work", daemon=True).start()
    try:
        failure = outcome.exception(seconds)
    except TimeoutError:
        raise TimeLimitReached from None
    except KeyboardInterrupt:
        end(130)
    if failure is not None:
        raise failure
    return outcome.result()


def end(status: int) -> NoReturn:
    """End the program; if threads hang, skip Python's wait for them."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(GRACE)
    if threading.active_count() == 1:
        raise typer.Exit(status)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
