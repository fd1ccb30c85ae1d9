"""Blocking work in threads, which ends before a cancelled caller continues.

Each call has a thread of its own, since the user's work may fill the loop's executor. Nothing here
outlives the call, so a server can be used from any event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(work: Callable[[threading.Event], T], undo: Callable[[T], None]) -> T:
    """Run `work` in a thread; on cancellation, ask it to halt, and wait until it has ended.

    Args:
        work: is passed an event that is set on cancellation, and then raises `Halted` soon.
        undo: is called, in a thread, with the result that a cancelled caller does not get.
    """
    halt = threading.Event()
    done = _spawn(lambda: work(halt))
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        halt.set()
        await _wait_through_cancellation(done)
        if not done.exception():
            await _wait_through_cancellation(_spawn(lambda: undo(done.result())))
        raise
    return done.result()


async def run_to_end(work: Callable[[], None]) -> None:
    """Run `work` in a thread to its end; a cancellation is raised only after that.

    Args:
        work: must end within a limited time.
    """
    done = _spawn(work)
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        await _wait_through_cancellation(done)
        done.exception()  # retrieved, so that asyncio does not report it as never retrieved
        raise
    done.result()


async def _wait_through_cancellation(done: asyncio.Future[T]) -> None:
    import anyio  # noqa: PLC0415 - rarely needed, and pytest loads us at every start

    # The shield keeps out anyio's scopes, but not asyncio's own cancel().
    with anyio.CancelScope(shield=True):
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done])


def _spawn(work: Callable[[], T]) -> asyncio.Future[T]:
    result: Future[T] = Future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            result.set_exception(error)
        else:
            result.set_result(value)

    threading.Thread(target=run, name="asyncpool.testing", daemon=True).start()
    return asyncio.wrap_future(result)
