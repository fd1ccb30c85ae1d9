"""A Starlette application on a pool, run by uvicorn, and its clients, some of which hang up."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.faults._load import (
    LONG,
    Load,
    Refused,
    Request,
    cancel_delay,
    error_name,
    mark_failed,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request as Asked

    from benchmarks.faults._peers import Peer


class Web:
    """The application and its clients, in one event loop.

    Args:
        peer: the pool.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._port = 0
        self._under_way: dict[int, Request] = {}
        routes = [Route("/write/{number:int}", self._write), Route("/stream", self._stream)]
        self._app = Starlette(routes=routes)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run the application for a block."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
            config = uvicorn.Config(
                self._app, lifespan="off", log_config=None, timeout_graceful_shutdown=5
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve([listener]))
            yield
            server.should_exit = True
            await serving

    async def ask(self, request: Request) -> None:
        """Send the HTTP request that inserts a number into the ledger."""
        self._under_way[request.number] = request
        answer = await self._get(f"/write/{request.number}")
        del self._under_way[request.number]
        if not answer.startswith(b"HTTP/1.1 200"):
            raise Refused(answer.partition(b"\r\n\r\n")[2].decode())

    async def cancel_many(self, load: Load, seconds: float, rate: float) -> None:
        """Run clients that hang up in the middle of a long response."""
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * rate)):
                request = load.request("cancelled")
                group.create_task(self._hang_up(request, cancel_delay(number)))
                await asyncio.sleep(1 / rate)

    async def _hang_up(self, request: Request, after: float) -> None:
        try:
            async with asyncio.timeout(after):
                await self._get("/stream")
            mark_failed(request, "answered too soon")
        except TimeoutError:
            request.outcome = "cancelled"
        except OSError as error:
            mark_failed(request, error_name(error))
        request.ended = time.monotonic()

    async def _get(self, path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            asked = f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
            writer.write(asked.encode())
            return await reader.read()
        finally:
            writer.close()

    async def _write(self, asked: Asked) -> Response:
        number = asked.path_params["number"]
        request = self._under_way[number]
        try:
            async with self._peer.borrow() as conn:
                request.borrowed = time.monotonic()
                await self._peer.write(conn, number)
        except Exception as error:  # noqa: BLE001 - a pool may raise anything
            return PlainTextResponse(error_name(error), 500)
        return PlainTextResponse("written")

    async def _stream(self, _: Asked) -> Response:
        async def body() -> AsyncIterator[str]:
            async with self._peer.borrow() as conn:
                yield "asleep\n"
                await self._peer.sleep(conn, LONG)
                yield "awake\n"

        return StreamingResponse(body())
