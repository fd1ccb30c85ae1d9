"""`pool.run_transaction()`: a transaction that is run again if it could not be serialized."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import TypeVar

from psycopg import errors

from asyncpool._core.outage import delay
from asyncpool._psycopg.driver import ACT

T = TypeVar("T")

RETRIED = errors.SerializationFailure, errors.DeadlockDetected
"""SQLSTATE 40001 and 40P01: the server has rolled the transaction back, and says to try again."""
FIRST = 0.02
CAP = 1.0
"""Seconds of the first pause and of the longest, before jitter."""

_random = Random()


async def retry(
    make: Callable[[], AbstractAsyncContextManager[ACT]],
    work: Callable[[ACT], Awaitable[T]],
    attempts: int,
) -> T | None:
    """Run work in a transaction block, and again after `RETRIED`; return its result.

    Args:
        make: creates the block of an attempt.
        work: called with the connection.
        attempts: the largest number of attempts.
    """
    number = 1
    while True:
        result = None  # of this attempt
        try:
            async with make() as conn:
                result = await work(conn)
        except RETRIED as error:
            if number == attempts:
                error.add_note(f"gave up after {number} attempts")
                raise
            await asyncio.sleep(delay(number, _random, FIRST, CAP))
            number += 1
        else:
            return result
