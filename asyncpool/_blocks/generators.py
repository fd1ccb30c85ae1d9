"""The async generators in which something is entered: one may be left suspended for good."""

from __future__ import annotations

import gc
from asyncio import AbstractEventLoop
from inspect import (
    CO_ASYNC_GENERATOR,
    CO_COROUTINE,
    CO_GENERATOR,
    CO_ITERABLE_COROUTINE,
    isasyncgen,
)
from types import AsyncGeneratorType, FrameType
from typing import Any

AWAITS = CO_COROUTINE | CO_GENERATOR | CO_ITERABLE_COROUTINE | CO_ASYNC_GENERATOR

Generator = AsyncGeneratorType[Any, Any]


def enclosing(frame: FrameType | None, loop: AbstractEventLoop) -> list[Generator]:
    """The async generators that run a frame in its task, innermost first, where they can be found.

    Frames know their generators since Python 3.14. Before, asyncio's loop knows those that have
    begun; uvloop's does not show them, but one that has begun a moment ago is young garbage.
    """
    found: list[Generator] = []
    # A plain function is where the task begins, which may do so in the middle of another one.
    while frame is not None and (flags := frame.f_code.co_flags) & AWAITS:
        if flags & CO_ASYNC_GENERATOR:
            generator = getattr(frame, "f_generator", None) or _look_for(frame, loop)
            if generator is not None:
                found.append(generator)
        frame = frame.f_back
    return found


def _look_for(frame: FrameType, loop: AbstractEventLoop) -> Generator | None:
    known = getattr(loop, "_asyncgens", None)
    places = [list(known)] if known is not None else map(_young, (0, 1))
    for place in places:
        for each in place:
            if isasyncgen(each) and each.ag_frame is frame:
                return each
    return None


def _young(generation: int) -> list[Any]:
    return gc.get_objects(generation=generation)
