"""Calls of the user's callables that a connect depends on, each within a time limit.

A callable may raise CancelledError because something that it awaited was cancelled. That counts as
a failure of the callable, unless the task that connects was cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from typing import Any

import anyio
import psycopg

CALL_TIMEOUT = 30.0
"""Seconds that each of `conninfo`, `kwargs` and `configure` may take."""


async def call(name: str, make: Callable[[], Any], limit: float | None = None) -> Any:
    """Call a plain or an async callable within a time limit, and return its value.

    Args:
        name: the callable's name, for errors.
        make: the callable.
        limit: seconds that the call may take, or `math.inf`; None means `CALL_TIMEOUT`.

    Raises:
        TimeoutError: the callable did not return in time.
        psycopg.OperationalError: the callable raised CancelledError although the calling task was
            not cancelled, or another BaseException that is neither an Exception nor one of
            Python's own.
    """
    limit = CALL_TIMEOUT if limit is None else limit
    try:
        if limit == math.inf:
            return await resolve(make)
        with anyio.move_on_after(limit):
            return await resolve(make)
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        msg = f"{name} raised {type(error).__name__} although the connect was not cancelled"
        raise psycopg.OperationalError(msg) from error
    msg = f"{name} did not return within {limit:g} s"
    raise TimeoutError(msg)


async def resolve(make: Callable[[], Any]) -> Any:
    """Call a plain or an async function, and return its value."""
    value = make()
    return await value if inspect.isawaitable(value) else value


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
