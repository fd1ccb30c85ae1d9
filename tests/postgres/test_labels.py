"""Whoever looks at a pool sees which route, endpoint or job has its connections."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import asyncpool
from asyncpool import AsyncConnectionPool, PoolDeadlock, PoolTimeout
from asyncpool.integrations import aiohttp as aiohttp_integration
from asyncpool.integrations.asgi import pool_of
from asyncpool.integrations.fastapi import ConnectionDep
from asyncpool.integrations.starlette import (
    CancelOnDisconnect,
    LabelRequests,
    RequestLimits,
    TransactionPerRequest,
    transaction,
)

from ._tools import client_of, eventually, in_time

Pool = AsyncConnectionPool[Any]
HERE = __name__


async def label_during(pool: Pool, app: Any, path: str) -> str:
    """The label of the one lease while a request is served, which ends with the app's gate."""
    app.state.pool, app.state.gate = pool, asyncio.Event()
    async with client_of(app) as client:
        request = asyncio.create_task(client.get(path))
        await eventually(lambda: pool.stats().leased and pool.explain().leases[0].label)
        (lease,) = pool.explain().leases
        assert lease.holder.startswith(f"{lease.label} in ")
        assert str(pool.explain()).count(f" by {lease.label} in ") == 1
        with pytest.raises(PoolTimeout, match="held by GET /orders/"):
            await pool.acquire(timeout=0.001)
        app.state.gate.set()
        answer = await in_time(request)
        assert answer.status_code == 200
    return lease.label


@pytest.fixture
async def pool(dsn: str) -> Any:
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, leak_timeout=60) as pool:
        yield pool


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.get("/orders/{number}")
    async def read_order(number: int, conn: ConnectionDep) -> None:
        await app.state.gate.wait()

    return app


async def test_a_dependency_of_fastapi_names_the_route_and_the_endpoint(pool: Pool) -> None:
    """The template, not the path, and the function that the request ends in."""
    assert await label_during(pool, fastapi_app(), "/orders/7") == (
        f"GET /orders/{{number}} ({HERE}.fastapi_app.<locals>.read_order)"
    )


async def read_with_transaction(request: Request) -> Response:
    await transaction(request)
    await request.app.state.gate.wait()
    return PlainTextResponse("done")


async def read_on_a_pool_of_its_own(request: Request) -> Response:
    async with request.app.state.pool.connection():
        await request.app.state.gate.wait()
    return PlainTextResponse("done")


async def test_a_transaction_of_a_request_names_its_endpoint(pool: Pool) -> None:
    """Starlette's scope has no route: then the path is shown."""
    routes = [Route("/orders/{number}", read_with_transaction)]
    app = Starlette(routes=routes, middleware=[Middleware(TransactionPerRequest)])
    found = await label_during(pool, app, "/orders/7")
    assert found in {
        f"GET {path} ({HERE}.read_with_transaction)" for path in ("/orders/7", "/orders/{number}")
    }


async def test_the_middleware_labels_what_never_asks_for_the_pool(pool: Pool) -> None:
    """Also where another middleware runs the endpoint in a task of its own."""

    class Plain(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            return await call_next(request)

    routes = [Route("/orders/{number}", read_on_a_pool_of_its_own)]
    app = Starlette(routes=routes, middleware=[Middleware(LabelRequests), Middleware(Plain)])
    found = await label_during(pool, app, "/orders/7")
    assert found.endswith(f" ({HERE}.read_on_a_pool_of_its_own)")


@pytest.mark.parametrize("middleware", [CancelOnDisconnect, RequestLimits, TransactionPerRequest])
async def test_each_middleware_labels_requests(pool: Pool, middleware: Any) -> None:
    """Also what uses the pool without asking an integration for it."""
    routes = [Route("/orders/{number}", read_on_a_pool_of_its_own)]
    app = Starlette(routes=routes, middleware=[Middleware(middleware)])
    found = await label_during(pool, app, "/orders/7")
    assert found.endswith(f" ({HERE}.read_on_a_pool_of_its_own)")


def prefixed_app() -> FastAPI:
    """An app with a router and a mounted app behind prefixes."""
    app, router, inner = FastAPI(), APIRouter(), FastAPI()

    @router.get("/items/{number}")
    async def read_item(shop: str, number: int, conn: ConnectionDep) -> None:
        await app.state.gate.wait()

    @inner.get("/lines/{number}")
    async def read_line(number: int, conn: ConnectionDep) -> None:
        await app.state.gate.wait()

    app.include_router(router, prefix="/orders/{shop}")
    inner.state = app.state
    app.mount("/orders", inner)
    return app


@pytest.mark.parametrize(
    ("path", "template", "name"),
    [
        ("/orders/north/items/7", "/orders/{shop}/items/{number}", "read_item"),
        ("/orders/lines/7", "/orders/lines/{number}", "read_line"),
    ],
)
async def test_the_template_has_the_prefixes_of_routers_and_mounts(
    pool: Pool, path: str, template: str, name: str
) -> None:
    """The innermost route alone does not know them."""
    found = await label_during(pool, prefixed_app(), path)
    assert found == f"GET {template} ({HERE}.prefixed_app.<locals>.{name})"


async def test_a_request_that_is_over_keeps_no_connection(pool: Pool) -> None:
    """A task that it has started has its label, yet a connection that is lost is reclaimed."""
    ends = asyncio.Event()
    started: list[asyncio.Task[bool]] = []

    async def start(request: Request) -> Response:
        await (await transaction(request)).execute("SELECT 1")
        started.append(asyncio.create_task(ends.wait()))
        return PlainTextResponse("done")

    async def lose() -> None:
        await pool.acquire()

    app = Starlette(routes=[Route("/", start)], middleware=[Middleware(TransactionPerRequest)])
    app.state.pool = pool
    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 200
    try:
        await asyncio.create_task(lose())
        await pool.release(await pool.acquire(timeout=10))
        assert pool.stats().leaks == 1
    finally:
        ends.set()
        await asyncio.gather(*started)


async def test_the_application_s_own_label_stays(pool: Pool) -> None:
    """Finding the pool of a request does not replace it."""
    app = Starlette()
    app.state.pool = pool
    scope = {"type": "http", "app": app, "method": "GET", "path": "/"}
    with asyncpool.label("import of orders"):
        async with pool_of(scope).connection():
            assert pool.explain().leases[0].label == "import of orders"


async def test_the_middleware_of_aiohttp_labels_each_request(pool: Pool) -> None:
    """One task serves several requests of a client there, each with its own label."""
    found: list[str] = []

    async def read_order(request: web.Request) -> web.Response:
        async with pool.connection():
            found.append(pool.explain().leases[0].label)
        return web.Response()

    app = web.Application(middlewares=[aiohttp_integration.label_requests])
    app.router.add_get("/orders/{number}", read_order)
    app.router.add_get("/other", read_order)
    async with TestClient(TestServer(app)) as client:
        for path in ("/orders/1", "/other"):
            assert (await client.get(path)).status == 200
    name = f"{HERE}.{read_order.__qualname__}"
    assert found == [f"GET /orders/{{number}} ({name})", f"GET /other ({name})"]


async def test_a_leak_of_a_request_is_reported_after_the_next_request(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same task serves both; the report names the request that took the connection."""

    async def lose(request: web.Request) -> web.Response:
        kept.append(await pool.acquire())
        return web.Response()

    async def other(request: web.Request) -> web.Response:
        await eventually(lambda: pool.stats().leaks)
        return web.Response(text=pool.explain().leases[0].label)

    kept: list[Any] = []
    app = web.Application(middlewares=[aiohttp_integration.label_requests])
    app.router.add_get("/orders/{number}", lose)
    app.router.add_get("/other", other)
    async with (
        AsyncConnectionPool(dsn, min_size=1, max_size=1, leak_timeout=0.05) as pool,
        TestClient(TestServer(app)) as client,
    ):
        assert (await client.get("/orders/1")).status == 200
        answer = await in_time(client.get("/other"))
        label = f"GET /orders/{{number}} ({HERE}.{lose.__qualname__})"
        assert await answer.text() == label
        assert re.search(rf"longer than leak_timeout: .* by {re.escape(label)} in ", caplog.text)
        await pool.release(kept.pop())


@pytest.mark.parametrize("leak_timeout", [None, 60])
async def test_a_connection_lost_in_a_block_of_a_label_is_reported_with_it(
    dsn: str, caplog: pytest.LogCaptureFixture, leak_timeout: float | None
) -> None:
    """The block has ended, and so has the task."""

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, leak_timeout=leak_timeout) as pool:

        async def lose() -> None:
            with asyncpool.label("nightly report"):
                await pool.acquire()

        await asyncio.create_task(lose(), name="worker")
        await pool.release(await pool.acquire(timeout=10))
        assert "by nightly report in worker (ended)" in caplog.text


async def test_litestar_s_plugin_labels_requests(dsn: str) -> None:
    """The handler's path and function."""
    litestar = pytest.importorskip("litestar")
    from asyncpool.integrations.litestar import PoolPlugin

    found: list[str] = []
    pool = AsyncConnectionPool(dsn, min_size=1, open=False)

    async def read_order() -> None:
        async with pool.connection():
            found.append(pool.explain().leases[0].label)

    handler = litestar.get("/orders/{number:int}")(read_order)
    app = litestar.Litestar([handler], plugins=[PoolPlugin(pool)])
    async with app.lifespan(), client_of(app) as client:
        assert (await client.get("/orders/7")).status_code == 200
    name = f"{HERE}.test_litestar_s_plugin_labels_requests.<locals>.read_order"
    assert found == [f"GET /orders/{{number}} ({name})"]


async def test_waiters_deadlocks_and_leaks_name_the_label(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The label comes before the task's name."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, leak_timeout=0.05) as pool:

        async def work() -> None:
            with asyncpool.label("nightly report"):
                async with pool.connection(), pool.connection(timeout=5):
                    raise AssertionError("there is one connection")

        async def wait() -> None:
            asyncpool.label("a reader")
            await pool.acquire()

        task = asyncio.create_task(work(), name="worker")
        await eventually(lambda: pool.stats().waiting)
        (waiter,) = pool.explain().waiters
        assert (waiter.label, waiter.task) == ("nightly report", "nightly report in worker")
        with pytest.raises(PoolDeadlock, match="\n  nightly report in worker waits at "):
            await in_time(task)
        conn = await pool.acquire()
        reader = asyncio.create_task(wait(), name="reader")
        await eventually(lambda: pool.stats().waiting)
        await pool.release(conn)
        await in_time(reader)
        with contextlib.suppress(PoolTimeout):
            await pool.acquire(timeout=0.5)  # its monitor sees that the holder has ended
        await eventually(lambda: "by a reader in reader" in caplog.text)
        await pool.release(conn)
