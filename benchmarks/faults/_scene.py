"""What a scene is: a function that plays one fault on a stage, with its name for people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from asyncpool.testing import Server, postgres
from benchmarks.faults._stage import Stage


@dataclass(frozen=True)
class Scene:
    """One fault.

    Args:
        key: for the command line.
        title: for the table.
        play: begins the load, strikes, and says when it is over.
        server: makes the server.
    """

    key: str
    title: str
    play: Callable[[Stage], Awaitable[None]]
    server: Callable[[], AbstractAsyncContextManager[Server]] = postgres
