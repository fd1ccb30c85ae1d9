"""One app in each web framework, with the same handlers, and a client of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from asyncpool import AsyncConnectionPool
from asyncpool.integrations import aiohttp, starlette

from ._tools import client_of

Handlers = dict[str, Callable[[Any], Awaitable[str]]]
"""By path, such as "/orders/{id}", what answers a request with a text."""
Options = dict[str, Any]


@asynccontextmanager
async def starlette_client(
    pool: AsyncConnectionPool, handlers: Handlers, limits: Options | None, answers: Options
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the handlers with Starlette."""

    def route(path: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return PlainTextResponse(await handlers[path](request))

        return Route(path, endpoint)

    app = Starlette(
        routes=[route(path) for path in handlers],
        middleware=[] if limits is None else [Middleware(starlette.RequestLimits, **limits)],
        exception_handlers=starlette.busy(**answers),
        lifespan=starlette.lifespan(pool),
    )
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


@asynccontextmanager
async def aiohttp_client(
    pool: AsyncConnectionPool, handlers: Handlers, limits: Options | None, answers: Options
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the handlers with aiohttp, on a port."""

    def route(path: str) -> web.RouteDef:
        async def endpoint(request: web.Request) -> web.Response:
            return web.Response(text=await handlers[path](request))

        return web.get(path, endpoint)

    limiting = [] if limits is None else [aiohttp.request_limits(**limits)]
    app = web.Application(middlewares=[aiohttp.busy(**answers), *limiting])
    app.cleanup_ctx.append(aiohttp.pool_context(pool))
    app.add_routes([route(path) for path in handlers])
    limit = httpx.Limits(max_connections=None)
    async with (
        TestServer(app) as server,
        httpx.AsyncClient(base_url=str(server.make_url("/")), limits=limit, timeout=30) as client,
    ):
        yield client


@asynccontextmanager
async def litestar_client(
    pool: AsyncConnectionPool, handlers: Handlers, limits: Options | None, answers: Options
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the handlers with Litestar."""
    litestar = pytest.importorskip("litestar")
    from asyncpool.integrations import litestar as ours

    def route(path: str) -> Any:
        async def endpoint(request: Any) -> str:
            return await handlers[path](request)

        endpoint.__annotations__["request"] = litestar.Request
        own_path = re.sub(r"{(\w+)}", r"{\1:str}", path)
        return litestar.get(own_path, media_type="text/plain")(endpoint)

    limiting = (
        []
        if limits is None
        else [litestar.middleware.DefineMiddleware(ours.RequestLimits, **limits)]
    )
    app = litestar.Litestar(
        [route(path) for path in handlers],
        plugins=[ours.PoolPlugin(pool, **answers)],
        middleware=limiting,
        openapi_config=None,
        logging_config=None,  # the default one takes the log away from pytest
    )
    async with app.lifespan(), client_of(app) as client:
        yield client


CLIENTS = {
    "starlette": starlette_client,
    "aiohttp": aiohttp_client,
    "litestar": litestar_client,
}

each_framework = pytest.mark.parametrize("framework", CLIENTS)


def serve(
    framework: str,
    pool: AsyncConnectionPool,
    handlers: Handlers,
    *,
    limits: Options | None = None,
    **answers: Any,
) -> Any:
    """Return a block with a client of an app that has these handlers.

    Args:
        framework: a key of `CLIENTS`.
        pool: the app's pool, which is opened and closed with the app.
        handlers: the app's handlers.
        limits: the arguments of `RequestLimits`; None: the app does without.
        answers: the arguments of `busy`.
    """
    return CLIENTS[framework](pool, handlers, limits, answers)


def use(pool: AsyncConnectionPool) -> Callable[[Any], Awaitable[str]]:
    """Return a handler that uses a connection for 50 ms."""

    async def handler(request: Any) -> str:
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(0.05)")
        return "done"

    return handler
