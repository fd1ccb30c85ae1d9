"""Where in the program something was done, or is waited for: taken cheaply, read seldom."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from itertools import islice, takewhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = str(Path(__file__).parents[1])
LOOP = tuple(
    str(Path(asyncio.__file__).with_name(name))
    for name in ("events.py", "base_events.py", "runners.py")
)
"""What runs every task; what is above it tells nothing."""
Trace = tuple[Any, ...]
"""Innermost first: what runs, then the instruction in it, whose line is looked up when shown."""


def above(frame: FrameType, depth: int = 8) -> Trace:
    """A frame and those that called it, `depth` of them at most."""
    found: list[Any] = []
    below: FrameType | None = frame
    while below is not None and len(found) < 2 * depth:
        found += below.f_code, below.f_lasti
        below = below.f_back
    return tuple(found)


def three(frame: FrameType) -> Trace:
    """A frame and the two that called it, in a third of the time: it is done for each request."""
    if (second := frame.f_back) is None:
        return frame.f_code, frame.f_lasti
    if (third := second.f_back) is None:
        return frame.f_code, frame.f_lasti, second.f_code, second.f_lasti
    code, at, above_it, at_second = frame.f_code, frame.f_lasti, second.f_code, second.f_lasti
    return code, at, above_it, at_second, third.f_code, third.f_lasti


def lines(trace: Trace) -> list[str]:
    """The places outside of the pool, innermost first, such as "app.py:12 in handler"."""
    places = zip(trace[::2], trace[1::2], strict=True)
    task = takewhile(lambda each: not each[0].co_filename.startswith(LOOP), places)
    return [
        _place(code, _line(code, instruction)) for code, instruction in task if not _is_ours(code)
    ]


def where(task: asyncio.Task[Any]) -> list[str]:
    """Where a task waits, innermost first; the pool's own frames are left out."""
    found: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None and not _is_ours(frame.f_code):
            found.insert(0, _place(frame.f_code, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return found


def caller(driver: str, depth: int = 16) -> str:
    """The place in the program that has called the pool, such as "app.py:12 in handler".

    Args:
        driver: the folder of the driver's code, which may be between the two.
        depth: frames that are looked at.

    Returns:
        An empty string where there is none, as in a task that runs nothing but the pool's code.
    """
    between = (PACKAGE, contextlib.__file__, driver)
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        if frame is None or frame.f_code.co_filename.startswith(LOOP):
            break
        if not frame.f_code.co_filename.startswith(between):
            return _place(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return ""


def _line(code: CodeType, instruction: int) -> int | None:
    return next(islice(code.co_positions(), instruction // 2, None), (None,))[0]


def _place(code: CodeType, line: int | None) -> str:
    return f"{code.co_filename}:{line} in {code.co_qualname}"


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(PACKAGE)
