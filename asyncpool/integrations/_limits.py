"""The limits of a request: the deadline, priority and flow for all that it borrows.

This module decides what a client may ask for; it knows no framework.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any

from asyncpool import within

# A value for all requests, or a plain or async function of the request that returns it.
Seconds = float | Callable[[Any], float | Awaitable[float | None] | None] | None
Priority = int | Callable[[Any], int | Awaitable[int | None] | None] | None
Flow = Hashable | Callable[[Any], Hashable | Awaitable[Hashable]]

NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
"""The name of a header."""


class Limits:
    """The limits of an app's requests.

    Args:
        seconds: the time from a request's arrival until its deadline; None: no deadline.
        header: the header in which a client may ask for less time; None: it may not.
        priority: the priority of a request.
        flow: the flow of a request.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """

    def __init__(
        self,
        seconds: Seconds,
        header: str | None,
        priority: Priority,
        flow: Flow,
    ) -> None:
        values = (None if callable(each) else each for each in (seconds, priority, flow))
        _within(*values)
        if header is not None and not (isinstance(header, str) and NAME.fullmatch(header)):
            msg = f"header must be a header's name such as 'X-Request-Timeout', not {header!r}"
            raise ValueError(msg)
        self._seconds = seconds
        self.header = header
        self._priority = priority
        self._flow = flow

    async def place(self, request: Any) -> within:
        """Return the block with a request's priority and flow."""
        priority = await _found(self._priority, request)
        return _within(None, priority, await _found(self._flow, request))

    async def deadline(self, request: Any, asked: Iterable[str]) -> within:
        """Return the block with a request's deadline.

        Args:
            request: the request.
            asked: the values of the header, each of them the seconds that the client asks for.
        """
        seconds = await _found(self._seconds, request)
        for each in asked:
            if (wish := _parsed(each)) is not None:
                seconds = wish if seconds is None else min(seconds, wish)
        return _within(seconds, None, None)


def _within(seconds: Any, priority: Any, flow: Any) -> within:
    return within(seconds, priority=priority, flow=flow)


async def _found(choice: Any, request: Any) -> Any:
    found = choice(request) if callable(choice) else choice
    return await found if isinstance(found, Awaitable) else found


def _parsed(text: str) -> float | None:
    """Return the seconds in a header; None if it has no such number."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
