"""The user's callables that a connect depends on: called within a time limit.

A callable that raises CancelledError by itself, because something it awaited was cancelled, has
failed. Only the cancellation of the connect's own task is a cancellation.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import anyio
import psycopg

CALL_TIMEOUT = 30.0
"""Seconds that `conninfo`, `kwargs` and `configure` may take, each."""


async def call(name: str, make: Callable[[], Any], limit: float | None = None) -> Any:
    """The value of a plain or an async callable.

    Args:
        name: the callable's, for errors.
        make: the callable.
        limit: seconds that it may take; None: `CALL_TIMEOUT`.

    Raises:
        TimeoutError: it did not return in time.
        psycopg.OperationalError: it raised CancelledError, or another BaseException that is not an
            Exception, though the calling task was not cancelled.
    """
    limit = CALL_TIMEOUT if limit is None else limit
    try:
        with anyio.move_on_after(limit):
            return await settle(make)
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        msg = f"{name} raised {type(error).__name__}, though the connect was not cancelled"
        raise psycopg.OperationalError(msg) from error
    msg = f"{name} did not return within {limit:g} s"
    raise TimeoutError(msg)


async def settle(make: Callable[[], Any]) -> Any:
    """Call a plain or an async function."""
    value = make()
    return await value if inspect.isawaitable(value) else value


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
