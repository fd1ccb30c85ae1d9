"""The definition of one fault: its names, its server and the function that causes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from asyncpool.testing import Server, postgres
from benchmarks.faults._trial import Trial


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        key: its name on the command line.
        title: its name in the tables.
        inject: starts the load, causes the fault, and finishes the trial.
        server: starts the server.
    """

    key: str
    title: str
    inject: Callable[[Trial], Awaitable[None]]
    server: Callable[[], AbstractAsyncContextManager[Server]] = postgres
