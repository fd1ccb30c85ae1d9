"""One pool with its load, in a process of its own, controlled by commands on stdin.

A command is a JSON object on a line, and so is the reply when it is done. If the pool hangs or
crashes, only this process does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
import warnings
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.faults._load import GRACE, Load, Request, error_name
from benchmarks.faults._peers import PEERS, Setup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RETRY = 0.5
"""Seconds after which opening the pool is tried again, as if the application were restarted."""
CLOSE = 20.0
"""Seconds after which a `close()` counts as hung."""


class NotOpen(Exception):
    """The pool is not open yet."""


class Worker:
    """One pool with its load; the public methods are the commands.

    Args:
        pool: its name.
        setup: the arguments of `Setup`.
        rate: requests per second.
        web: whether requests come through a Starlette application.
    """

    def __init__(self, pool: str, setup: dict[str, Any], rate: float, *, web: bool) -> None:
        self._setup = Setup(**setup)
        self._peer = PEERS[pool](self._setup)
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[None] | None = None
        self._load = Load(self._peer, self._setup.limit, rate, self._once_open)
        self._web = None
        if web:
            from benchmarks.faults._web import Web  # noqa: PLC0415 - its packages are optional

            self._web = Web(self._peer)

    async def open(self, wait: bool = True) -> None:
        """Open the pool; if `wait`, use each of its connections once."""
        self._opening = asyncio.create_task(self._open())
        if wait:
            await self._opening
            await self._use_all()
        if self._web is not None:
            await self._stack.enter_async_context(self._web.serving())

    async def start(self) -> None:
        """Start the load."""
        self._load.start()

    async def pause(self) -> None:
        """Pause the load until `resume`, and wait for the requests that are under way."""
        await self._load.pause()

    async def resume(self) -> None:
        """Continue the load."""
        self._load.resume()

    async def occupy(self, seconds: float) -> None:
        """Keep all connections in use for `seconds`."""
        await self._load.occupy(self._setup.size, seconds)

    async def cancel_many(self, kind: str, seconds: float, rate: float) -> None:
        """Run requests that are cancelled, or HTTP clients that hang up."""
        if self._web is not None:
            await self._web.cancel_many(self._load, seconds, rate)
        else:
            await self._load.cancel_many(kind, seconds, rate)

    async def finish(self) -> dict[str, Any]:
        """End the load and close the pool; return the records."""
        await self._load.finish()
        found = self._load.records()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        start = time.monotonic()
        closing = asyncio.create_task(self._close())
        await asyncio.wait([closing], timeout=CLOSE)
        error = None if not closing.done() else closing.exception()
        return {
            "requests": found,
            "close": time.monotonic() - start if closing.done() else None,
            "close_error": "" if error is None else f"{error_name(error)}: {error}",
        }

    async def _open(self) -> None:
        while True:
            try:
                await self._peer.open()
            except Exception:  # noqa: BLE001 - a pool may raise anything
                await asyncio.sleep(RETRY)
            else:
                return

    async def _use_all(self) -> None:
        count = self._setup.size
        together = asyncio.Barrier(count)

        async def use() -> None:
            async with self._peer.borrow() as conn:
                await together.wait()
                await self._peer.sleep(conn, 0)

        async with asyncio.timeout(self._setup.limit + GRACE), asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(use())

    async def _once_open(self, request: Request) -> None:
        if self._opening is None or not self._opening.done():
            raise NotOpen
        await (self._load.write if self._web is None else self._web.ask)(request)

    async def _close(self) -> None:
        await self._stack.aclose()
        await self._peer.close()


async def run_commands(worker: Worker, lines: asyncio.Queue[bytes]) -> None:
    """Run the commands, one after another, and print the replies."""
    while True:
        command = json.loads(await lines.get())
        do: Callable[..., Awaitable[Any]] = getattr(worker, command.pop("do"))
        try:
            answer = {"answer": await do(**command)}
        except Exception as error:  # noqa: BLE001 - it is the reply
            answer = {"error": f"{error_name(error)}: {error}"}
        print(json.dumps(answer), flush=True)


async def main() -> None:
    """Read commands until stdin ends."""
    stdin = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    worker = Worker(**json.loads(await stdin.readline()))
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    running = asyncio.create_task(run_commands(worker, lines))
    while line := await stdin.readline():
        lines.put_nowait(line)
    running.cancel()
    os._exit(0)  # the parent has ended; do not wait for a pool that hangs


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    warnings.simplefilter("ignore")
    logging.disable()
    asyncio.run(main())
