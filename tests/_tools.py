"""Helpers of the unit tests and of the tests on a server."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def at_once(work: Awaitable[T]) -> T:
    """Return the result of an awaitable that must not suspend."""

    async def wait() -> T:
        return await work

    steps = wait()
    try:
        steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()
    raise AssertionError("it suspended")
