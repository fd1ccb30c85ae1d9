"""Find the async generators that enclose a frame: one may stay suspended and never resume."""

from __future__ import annotations

import gc
import weakref
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
    """Return the async generators around a frame in its task, innermost first, as far as known.

    Since Python 3.14 a frame refers to its generator. Before, asyncio's loop lists the started
    generators. uvloop does not, but a generator that has just started is in a young generation of
    the garbage collector.
    """
    found: list[Generator] = []
    # It stops at a plain function: with eager tasks, frames beyond it may be another task's.
    while frame is not None and (flags := frame.f_code.co_flags) & AWAITS:
        if flags & CO_ASYNC_GENERATOR:
            generator = getattr(frame, "f_generator", None) or _find(frame, loop)
            if generator is not None:
                found.append(generator)
        frame = frame.f_back
    return found


def _find(frame: FrameType, loop: AbstractEventLoop) -> Generator | None:
    known = getattr(loop, "_asyncgens", None)
    places = [list(known)] if known is not None else map(_young_objects, (0, 1))
    for place in places:
        for each in place:
            if isasyncgen(each) and each.ag_frame is frame:
                return each
    return None


def _young_objects(generation: int) -> list[Any]:
    return gc.get_objects(generation=generation)


def is_suspended(generator: weakref.ref[Generator]) -> bool:
    """Whether a generator is alive and suspended, so that the running code is outside it."""
    alive = generator()
    return alive is not None and not alive.ag_running
