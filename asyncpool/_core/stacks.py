"""Call sites and waiting places in the program: recorded cheaply, formatted only when shown.

The application's own frames are shown. Frames of the pool, the standard library and installed
packages are skipped where there are others. An application may be an installed package itself; then
only the frames of well-known libraries are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from itertools import islice, takewhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = str(Path(__file__).parents[1]) + os.sep
BETWEEN = PACKAGE, contextlib.__file__
"""The beginnings of the file names whose frames are skipped on the way to the program."""
STANDARD = str(Path(os.__file__).parent) + os.sep, "<frozen "
"""The beginnings of the file names of the standard library."""
INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
"""Folders of installed packages, wherever they are."""
FRAMEWORKS = {
    *("aiohttp", "anyio", "fastapi", "granian", "greenlet", "gunicorn", "hypercorn", "litestar"),
    *("opentelemetry", "psycopg", "sentry_sdk", "sqlalchemy", "starlette", "uvicorn", "uvloop"),
}
"""Installed packages that are no application."""
LOOP = tuple(
    str(Path(asyncio.__file__).with_name(name))
    for name in ("events.py", "base_events.py", "runners.py")
)
"""The files of the event loop; frames outside of them say nothing about the task."""
Trace = tuple[Any, ...]
"""Pairs of a code object and an instruction, flattened, innermost first."""
Place = tuple[CodeType, int | None]
"""A code object and a line."""


def capture(frame: FrameType, depth: int = 8) -> Trace:
    """Return a frame and its callers, at most `depth` frames."""
    found: list[Any] = []
    below: FrameType | None = frame
    while below is not None and len(found) < 2 * depth:
        found += below.f_code, below.f_lasti
        below = below.f_back
    return tuple(found)


def capture_three(frame: FrameType) -> Trace:
    """Return a frame and two callers; three times as fast as `capture`, for each request."""
    if (second := frame.f_back) is None:
        return frame.f_code, frame.f_lasti
    if (third := second.f_back) is None:
        return frame.f_code, frame.f_lasti, second.f_code, second.f_lasti
    code, at, above_it, at_second = frame.f_code, frame.f_lasti, second.f_code, second.f_lasti
    return code, at, above_it, at_second, third.f_code, third.f_lasti


def lines(trace: Trace) -> list[str]:
    """Format a trace, such as "app.py:12 in handler": the application's frames, innermost first."""
    places = zip(trace[::2], trace[1::2], strict=True)
    in_task = takewhile(lambda each: not each[0].co_filename.startswith(LOOP), places)
    return _shown([(code, _line(code, instruction)) for code, instruction in in_task])


def where(task: asyncio.Task[Any]) -> list[str]:
    """Return the places where a task waits: the application's frames, innermost first."""
    found: list[Place] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            found.insert(0, (frame.f_code, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return _shown(found)


def caller(driver: str, depth: int = 16) -> str:
    """Return the place in the program that called the pool, such as "app.py:12 in handler".

    Args:
        driver: the folder of the driver, whose frames are skipped.
        depth: the largest number of frames to look at.

    Returns:
        An empty string if there is none, as in a task that runs only the pool's code.
    """
    between = (*BETWEEN, driver)
    found: list[Place] = []
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        if frame is None or frame.f_code.co_filename.startswith(LOOP):
            break
        if not frame.f_code.co_filename.startswith(between):
            found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return next(iter(_shown(found)), "")


def _shown(places: list[Place]) -> list[str]:
    """Format the application's frames; if there are none, all that are not the pool's."""
    outside = [each for each in places if not each[0].co_filename.startswith(BETWEEN)]
    own = [each for each in outside if not _is_library(each[0].co_filename)]
    installed = [each for each in outside if not _is_no_application(each[0].co_filename)]
    return [
        f"{code.co_filename}:{line} in {code.co_qualname}"
        for code, line in own or installed or outside
    ]


def _is_library(file: str) -> bool:
    return file.startswith(STANDARD) or any(each in file for each in INSTALLED)


def _is_no_application(file: str) -> bool:
    """Whether a file is of the standard library or of a well-known package."""
    for folder in INSTALLED:
        _, found, rest = file.rpartition(folder)
        if found:
            return rest.partition(os.sep)[0] in FRAMEWORKS
    return file.startswith(STANDARD)


def _line(code: CodeType, instruction: int) -> int | None:
    return next(islice(code.co_positions(), instruction // 2, None), (None,))[0]
