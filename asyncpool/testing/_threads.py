"""Blocking work beside the event loop, never left behind by a cancellation.

Each call has a thread of its own: the loop's executor belongs to the user, who may have
filled it. Nothing here outlives the call, so a server can be used from any event loop.
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
    """Run `work` in a thread to its end; when cancelled, ask it to halt and wait for that.

    Args:
        work: Gets an event that is set on cancellation, and is to end soon after, with `Halted`.
        undo: Called, in a thread, on the result that a cancelled caller does not get.
    """
    halt = threading.Event()
    done = _spawn(lambda: work(halt))
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        halt.set()
        await _see_through(done)
        if not done.exception():
            await _see_through(_spawn(lambda: undo(done.result())))
        raise
    return done.result()


async def to_the_end(work: Callable[[], None]) -> None:
    """Run `work`, bounded in time, in a thread; a cancellation comes out after it."""
    done = _spawn(work)
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        await _see_through(done)
        done.exception()  # seen, so that asyncio does not report it as forgotten
        raise
    done.result()


async def _see_through(done: asyncio.Future[T]) -> None:
    import anyio  # noqa: PLC0415 - rarely needed, and pytest loads us at every start

    # The shield is against anyio's scopes; asyncio's own cancel() goes through it.
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
