"""HTTP clients that hang up in mid-query, on a real server of uvicorn's in the test's own loop.

Starlette gives a cancellation many ways: a task's, an anyio scope's that comes again at each await,
through a BaseHTTPMiddleware with task groups of its own. After each of them the pool is as before.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asyncpool import AsyncConnectionPool
from asyncpool.integrations.asgi import CancelOnDisconnect

from ._tools import BOTH_LOOPS, Backends, all_usable, at_rest, eventually, in_time

LOOPS = BOTH_LOOPS

CLIENTS = 6
"""More than the pool has connections, so that some hang up while they wait in the line."""


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    """A small one."""
    async with AsyncConnectionPool(dsn, min_size=4) as pool:
        await pool.wait()
        yield pool


@pytest.fixture
async def port(request: pytest.FixtureRequest, pool: AsyncConnectionPool) -> AsyncIterator[int]:
    """The port of an app on the pool, with the middleware that the parameter names."""

    async def sleep(request: Request) -> Response:
        async with pool.connection() as conn, conn.transaction():
            await conn.execute("SELECT pg_sleep(60)")
        return PlainTextResponse("awake")

    async def stream(request: Request) -> Response:
        async def rows() -> AsyncIterator[str]:
            async with pool.connection() as conn:
                query = "SELECT n, pg_sleep(n * 30) FROM generate_series(0, 2) n"
                async for row in conn.cursor().stream(query):
                    yield f"{row[0]}\n"

        return StreamingResponse(rows())

    async def one(request: Request) -> Response:
        return PlainTextResponse(str(await pool.fetchval("SELECT 1")))

    async def pass_on(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response: Response = await call_next(request)
        return response

    middleware = []
    if "cancel" in request.param:
        middleware += [Middleware(CancelOnDisconnect)]
    if "base" in request.param:
        middleware += [Middleware(BaseHTTPMiddleware, dispatch=pass_on)] * 2
    routes = [Route(f"/{each.__name__}", each) for each in (sleep, stream, one)]
    app = Starlette(routes=routes, middleware=middleware)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve([listener]))
        await eventually(lambda: server.started)
        yield listener.getsockname()[1]
        server.should_exit = True
        await in_time(serving)


async def get(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader, writer


def hang_up(writer: asyncio.StreamWriter) -> None:
    """With a reset, as a client does that is killed."""
    client = writer.get_extra_info("socket")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    ("port", "path"),
    [
        ("cancel", "/sleep"),
        ("cancel, base", "/sleep"),
        ("cancel, base", "/stream"),
        # A response that is streamed listens for the end of its client itself.
        ("nothing", "/stream"),
        ("base", "/stream"),
    ],
    indirect=["port"],
)
async def test_the_queries_of_clients_that_hang_up_end_on_the_server(
    pool: AsyncConnectionPool, port: int, backends: Backends, path: str
) -> None:
    """Those who waited in the line leave it, and every connection is usable afterwards."""
    for _ in range(3):
        clients = [await get(port, path) for _ in range(CLIENTS)]
        await eventually(lambda: backends.running("pg_sleep") == 4)
        await eventually(lambda: pool.stats().waiting == CLIENTS - 4)
        for _, writer in clients:
            hang_up(writer)
        await eventually(lambda: not backends.running("pg_sleep"))
        await at_rest(pool)
    await all_usable(pool)
    assert len(backends.pids()) == 4
    reader, writer = await get(port, "/one")
    assert b"200 OK" in await in_time(reader.readline())
    hang_up(writer)


@pytest.mark.parametrize("port", ["cancel", "cancel, base"], indirect=True)
async def test_clients_that_hang_up_at_any_moment_leave_nothing_behind(
    pool: AsyncConnectionPool, port: int, backends: Backends
) -> None:
    """Before their query, in it, and while its rows are on their way."""
    for n in range(60):
        _, writer = await get(port, ("/sleep", "/stream", "/one")[n % 3])
        await asyncio.sleep(n % 7 / 1000)
        hang_up(writer)
    await eventually(lambda: not backends.running("pg_sleep"))
    await all_usable(pool)
    assert len(backends.pids()) == 4
