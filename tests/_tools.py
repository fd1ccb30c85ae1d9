"""Helpers of the unit tests and of the tests on a server."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import pytest

from asyncpool._core.driver import C
from asyncpool._core.lease import ManualLease
from asyncpool._core.pool import Core

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


def acquire_now(core: Core[C]) -> C | None:
    """Lease an idle connection by hand, as `pool.acquire()` does; None: there is none."""
    entry = core.take_now(ManualLease.new())
    return None if entry is None else entry.conn


def few(values: Iterable[T], keep: int = 1) -> list[Any]:
    """The values of a parameter, of which the first run by default, and the rest `exhaustive`.

    A tuple is a row of several parameters.
    """
    rows = [each if isinstance(each, tuple) else (each,) for each in values]
    first = [pytest.param(*each) for each in rows[:keep]]
    return first + [pytest.param(*each, marks=pytest.mark.exhaustive) for each in rows[keep:]]
