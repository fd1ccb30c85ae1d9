"""One pool with its load, in a process of its own, that does what lines on its input say.

A line is a JSON object; each is answered by one when it is done. What hangs, or dies, is this
process and no other.
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

from benchmarks.faults._load import GRACE, Load, Request, name_of
from benchmarks.faults._peers import PEERS, Setup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RETRY = 0.5
"""Seconds after which an application whose pool did not open at its start is started again."""
CLOSE = 20.0
"""Seconds after which a `close()` counts as hung."""


class NotOpen(Exception):
    """The pool did not open, and is tried again."""


class Worker:
    """One pool; the methods without an underscore are the commands.

    Args:
        pool: its name.
        setup: as for all.
        rate: requests a second.
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
            from benchmarks.faults._web import Web  # noqa: PLC0415 - they are optional

            self._web = Web(self._peer)

    async def open(self, wait: bool = True) -> None:
        """Open the pool; if `wait`, have each of its connections used once."""
        self._opening = asyncio.create_task(self._open())
        if wait:
            await self._opening
            await self._use_all()
        if self._web is not None:
            await self._stack.enter_async_context(self._web.serving())

    async def begin(self) -> None:
        """Let the load begin."""
        self._load.begin()

    async def hold(self) -> None:
        """Hold the load until `resume`; nothing is under way when this is answered."""
        await self._load.hold()

    async def resume(self) -> None:
        """Let the load go on."""
        self._load.resume()

    async def lend(self, seconds: float) -> None:
        """Have all connections lent for so long."""
        await self._load.lend(self._setup.size, seconds)

    async def storm(self, kind: str, seconds: float, rate: float) -> None:
        """Cut requests short."""
        if self._web is not None:
            await self._web.storm(self._load, seconds, rate)
        else:
            await self._load.storm(kind, seconds, rate)

    async def finish(self) -> dict[str, Any]:
        """End the load, close the pool and give the records."""
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
            "close_error": "" if error is None else f"{name_of(error)}: {error}",
        }

    async def _open(self) -> None:
        while True:
            try:
                await self._peer.open()
            except Exception:  # noqa: BLE001 - whatever a pool may raise
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
            # What opens in the background is open at once.
            raise NotOpen
        await (self._load.write if self._web is None else self._web.ask)(request)

    async def _close(self) -> None:
        await self._stack.aclose()
        await self._peer.close()


async def obey(worker: Worker, lines: asyncio.Queue[bytes]) -> None:
    """Do what each line says."""
    while True:
        asked = json.loads(await lines.get())
        do: Callable[..., Awaitable[Any]] = getattr(worker, asked.pop("do"))
        try:
            answer = {"answer": await do(**asked)}
        except Exception as error:  # noqa: BLE001 - it is told
            answer = {"error": f"{name_of(error)}: {error}"}
        print(json.dumps(answer), flush=True)


async def main() -> None:
    """What the process does."""
    told = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    worker = Worker(**json.loads(await told.readline()))
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    obeying = asyncio.create_task(obey(worker, lines))
    while line := await told.readline():
        lines.put_nowait(line)
    obeying.cancel()
    os._exit(0)  # who started us is gone, whatever hangs here


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the one who started us
    warnings.simplefilter("ignore")
    logging.disable()
    asyncio.run(main())
