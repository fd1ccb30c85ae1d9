"""The async generators in which something is entered: one may be left suspended for good."""

from __future__ import annotations

import gc
from asyncio import AbstractEventLoop
from inspect import CO_ASYNC_GENERATOR, isasyncgen
from types import AsyncGeneratorType, FrameType
from typing import Any

Generator = AsyncGeneratorType[Any, Any]


def enclosing(frame: FrameType | None, loop: AbstractEventLoop) -> list[Generator]:
    """The async generators that run a frame, innermost first, as far as they can be found.

    Frames know their generators since Python 3.14. Before, asyncio's loop knows those that have
    begun; uvloop's does not show them, but one that has begun a moment ago is young garbage.
    """
    found: list[Generator] = []
    while frame is not None:
        if frame.f_code.co_flags & CO_ASYNC_GENERATOR:
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
