"""One process with one pool: it obeys the lines of stdin, and prints a line ten times a second.

The first line has its settings. Each line that it prints has the time, which is the same clock in
all processes of a machine, what was answered and what failed so far, and the CPU time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import warnings
from collections import Counter
from typing import Any

from benchmarks.fleet._peers import Sizes, make
from benchmarks.fleet._rows import TASKS, Action

EVERY = 0.1
"""Seconds from one line to the next."""
AGAIN = 0.1
"""Seconds from a request that failed to the next one of its task."""


class Member:
    """A process of the fleet.

    Args:
        given: the settings: the pool and its sizes, the server, and the duration of a request.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._peer = make(given["pool"], given["dsn"], Sizes(**given["sizes"]))
        self._use = given["use"]
        self._busy = asyncio.Event()
        self._ended = False
        self._opening: asyncio.Task[None] | None = None
        self._opened_at: float | None = None
        self._first: float | None = None
        self._answers = 0
        self._errors: Counter[str] = Counter()

    async def run(self) -> None:
        """Obey until the last line, or the one that ends this process."""
        commands = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(commands)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        tasks = [asyncio.create_task(self._ask()) for _ in range(TASKS)]
        tasks.append(asyncio.create_task(self._report()))
        self._print()
        while line := (await commands.readline()).decode().strip():
            if line == Action.END:
                break
            if line == Action.BUSY:
                self._begin()
            else:
                self._busy.clear()
        self._ended = True
        self._busy.clear()
        await asyncio.sleep(2 * self._use)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        await self._peer.close()
        self._print()

    def _begin(self) -> None:
        if self._opening is None:
            self._opened_at = time.monotonic()
            self._opening = asyncio.create_task(self._open())
        else:
            self._busy.set()

    async def _open(self) -> None:
        await self._peer.open()
        self._busy.set()

    async def _ask(self) -> None:
        while True:
            await self._busy.wait()
            try:
                await self._peer.ask(self._use)
            except Exception as error:  # noqa: BLE001 - a pool may raise anything
                self._errors[type(error).__name__] += 1
                await asyncio.sleep(AGAIN)
            else:
                self._answers += 1
                if self._first is None:
                    assert self._opened_at is not None, "bug: an answer without a pool"
                    self._first = time.monotonic() - self._opened_at
                    self._print()

    async def _report(self) -> None:
        while not self._ended:
            await asyncio.sleep(EVERY)
            self._print()

    def _print(self) -> None:
        found = {
            "at": time.monotonic(),
            "answers": self._answers,
            "errors": self._errors,
            "first": self._first,
            "cpu": time.process_time(),
        }
        print(json.dumps(found), flush=True)


def main() -> None:
    """Run the process."""
    asyncio.run(Member(json.loads(sys.stdin.readline())).run())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    main()
