"""A time limit that holds whatever the work does, and an end that waits for nobody.

The work has a thread of its own: a name look-up cannot be cancelled, nor what a library does in C,
and the program is to say so in time all the same.
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
"""Seconds in which threads may end by themselves."""


class TimeUp(Exception):
    """The work is not done, and goes on."""


def within(seconds: float, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `work` returns or raises, on an event loop of its own; to be followed by `end`.

    Raises:
        TimeUp: it has done neither within so many seconds.
    """
    outcome: Future[T] = Future()

    async def run() -> None:
        # Told before the loop is closed, which may take as long as it likes.
        try:
            outcome.set_result(await work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the outcome is asked for
            outcome.set_exception(error)

    threading.Thread(target=asyncio.run, args=(run(),), name="work", daemon=True).start()
    try:
        failure = outcome.exception(seconds)
    except TimeoutError:
        raise TimeUp from None
    except KeyboardInterrupt:
        end(130)
    if failure is not None:
        raise failure
    return outcome.result()


def end(status: int) -> NoReturn:
    """End the program: where threads hang, without the wait for them that Python would make."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(GRACE)
    if threading.active_count() == 1:
        raise typer.Exit(status)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
