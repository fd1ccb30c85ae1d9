"""`pool.retrying()`: a transaction that is run again if it could not be serialized."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from random import Random
from types import TracebackType
from typing import Generic, Self

from psycopg import errors

from asyncpool._blocks.supports import Exc
from asyncpool._core.outage import delay
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import PoolError

RETRIED = errors.SerializationFailure, errors.DeadlockDetected
"""SQLSTATE 40001 and 40P01: the server has rolled the transaction back, and says to try again."""
FIRST = 0.02
CAP = 1.0
"""Seconds of the first pause and of the longest, before jitter."""

MakeBlock = Callable[[], AbstractAsyncContextManager[ACT]]

_random = Random()


class Retrying(Generic[ACT]):
    """The attempts of one transaction: `async for attempt in pool.retrying()`.

    Args:
        make: creates the transaction block of an attempt.
        attempts: the largest number of attempts.
    """

    def __init__(self, make: MakeBlock[ACT], attempts: int) -> None:
        self._make = make
        self._attempts = attempts
        self._last: Attempt[ACT] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt[ACT]:
        number = 1
        if (last := self._last) is not None:
            if last.failed is None:
                msg = "the body of `async for attempt in retrying()` must be `async with attempt`"
                raise PoolError(msg)
            if not last.failed:
                raise StopAsyncIteration
            number = last.number + 1
            await asyncio.sleep(delay(last.number, _random, FIRST, CAP))
        self._last = Attempt(self._make(), number, is_last=number == self._attempts)
        return self._last


class Attempt(Generic[ACT]):
    """One attempt: `async with attempt as conn` is a transaction block.

    Args:
        block: the transaction block.
        number: the number of the attempt, from 1.
        is_last: whether its failure is raised.
    """

    def __init__(
        self, block: AbstractAsyncContextManager[ACT], number: int, *, is_last: bool
    ) -> None:
        self.number = number
        """The number of the attempt, from 1."""
        self.failed: bool | None = None
        """Whether it has failed and is tried again; None: it has not ended."""
        self._block = block
        self._is_last = is_last

    async def __aenter__(self) -> ACT:
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        try:
            handled = bool(await self._block.__aexit__(kind, error, tb))
        except RETRIED as failure:  # by the COMMIT
            if not self._may_retry(failure):
                raise
            handled = True
        else:
            if not handled and error is not None and self._may_retry(error):
                handled = True
        self.failed = bool(self.failed)
        return handled

    def _may_retry(self, error: BaseException) -> bool:
        if not isinstance(error, RETRIED):
            return False
        if self._is_last:
            error.add_note(f"gave up after {self.number} attempts")
            return False
        self.failed = True
        return True
