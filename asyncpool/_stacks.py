"""Where in the program something was done, or is waited for: taken cheaply, read seldom."""

from __future__ import annotations

import asyncio
import sys
from itertools import islice, takewhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

DEPTH = 8
"""The most frames that are noted, the pool's own among them."""
PACKAGE = str(Path(__file__).parent)
LOOP = tuple(
    str(Path(asyncio.__file__).with_name(name))
    for name in ("events.py", "base_events.py", "runners.py")
)
"""What runs every task; what is above it tells nothing."""

Trace = tuple[tuple[CodeType, int], ...]
"""Innermost first: what runs, and the instruction in it; the line is looked up when it is shown."""


def here() -> Trace:
    """Who has called the function that calls this."""
    frame: FrameType | None = sys._getframe(2)
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < DEPTH:
        found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def lines(trace: Trace) -> list[str]:
    """The places outside of the pool, innermost first, such as "app.py:12 in handler"."""
    task = takewhile(lambda each: not each[0].co_filename.startswith(LOOP), trace)
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


def _line(code: CodeType, instruction: int) -> int | None:
    return next(islice(code.co_positions(), instruction // 2, None), (None,))[0]


def _place(code: CodeType, line: int | None) -> str:
    return f"{code.co_filename}:{line} in {code.co_qualname}"


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(PACKAGE)
