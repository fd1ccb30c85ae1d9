"""The pool in aiohttp's server: which requests are committed."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from asyncpool import AsyncConnectionPool
from asyncpool.integrations.aiohttp import (
    POOL,
    busy,
    health,
    pool_context,
    ready,
    transaction,
    transaction_per_request,
)

from ._tools import Backends, at_rest, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpool.testing import Server

OTHER = web.AppKey("other", AsyncConnectionPool)
CLIENTS = 6


@pytest.fixture(autouse=True)
def no_log_of_what_handlers_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable aiohttp's log of handlers' exceptions, which tests raise on purpose."""
    monkeypatch.setattr(logging.getLogger("aiohttp.server"), "disabled", True)


def make_app(dsn: str, table: str, **options: Any) -> web.Application:
    """An app whose `/work` writes a row, then acts as its query string says."""

    async def work(request: web.Request) -> web.StreamResponse:
        conn = await transaction(request)
        await conn.execute(f"INSERT INTO {table} VALUES (%s)", [request.query["x"]])
        match request.query.get("then"):
            case "raise":
                raise ValueError("no such colour")
            case "redirect":
                raise web.HTTPFound("/")
            case "conflict":
                raise web.HTTPConflict
            case "unavailable":
                raise web.HTTPServiceUnavailable
            case "sql":
                await conn.execute("SELECT 1/0")
            case "sleep":
                await conn.execute("SELECT pg_sleep(60)")
        assert await transaction(request) is conn
        return web.Response(status=int(request.query.get("status", 200)))

    app = web.Application(middlewares=[busy(retry_after=7), transaction_per_request(**options)])
    app.cleanup_ctx.append(pool_context(lambda: AsyncConnectionPool(dsn, min_size=1, max_size=4)))
    app.add_routes([web.get("/work", work)])
    return app


def serve(app: web.Application, **options: Any) -> TestClient[web.Request, web.Application]:
    """Return a client of an app on a server of its own."""
    return TestClient(TestServer(app), **options)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("status=200", 200),
        ("status=404", 404),
        ("status=500", 500),
        ("then=redirect", 302),
        ("then=conflict", 409),
        ("then=unavailable", 503),
        ("then=raise", 500),
        ("then=sql", 500),
    ],
)
@pytest.mark.parametrize("lowest", [400, 500])
async def test_a_request_is_committed_unless_it_fails(
    dsn: str, table: str, backends: Backends, query: str, status: int, *, lowest: int
) -> None:
    """The status of an HTTPException decides, so a redirect after a POST is committed."""
    app = make_app(dsn, table, roll_back_from=lowest)
    async with serve(app) as client:
        response = await client.get(f"/work?x=1&{query}", allow_redirects=False)
        assert response.status == status
        assert backends.rows(table) == ([1] if status < lowest else [])
        assert (await at_rest(app[POOL])).size == 1


async def test_a_commit_that_fails_is_the_requests_failure(
    dsn: str, table: str, backends: Backends
) -> None:
    """The client gets no success."""
    backends.ask(f"ALTER TABLE {table} ADD UNIQUE (x) DEFERRABLE INITIALLY DEFERRED")
    async with serve(make_app(dsn, table)) as client:
        found = [(await client.get("/work?x=1")).status for _ in range(2)]
    assert found == [200, 500]
    assert backends.rows(table) == [1]


async def test_clients_that_hang_up_are_rolled_back(
    dsn: str, table: str, backends: Backends
) -> None:
    """Clients disconnect during a query or while waiting; `handler_cancellation` is set."""
    app = make_app(dsn, table)
    async with serve(app) as client:
        tasks = [asyncio.create_task(client.get(f"/work?x={x}&then=sleep")) for x in range(CLIENTS)]
        await eventually(lambda: backends.running("pg_sleep") == 4)
        await eventually(lambda: app[POOL].stats().waiting == CLIENTS - 4)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await eventually(lambda: not backends.running("pg_sleep"))
        await at_rest(app[POOL])
        assert (await client.get("/work?x=7")).status == 200
    assert backends.rows(table) == [7]


async def test_a_transaction_without_its_middleware_is_an_error(dsn: str) -> None:
    """The error names the middleware; a value that is no status is refused at the call."""
    seen: list[str] = []

    async def work(request: web.Request) -> web.Response:
        with pytest.raises(LookupError, match="transaction_per_request") as caught:
            await transaction(request)
        seen.append(str(caught.value))
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", work)])
    async with serve(app) as client:
        assert (await client.get("/")).status == 200
    assert len(seen) == 1
    with pytest.raises(ValueError, match="roll_back_from must be a status"):
        transaction_per_request(roll_back_from=200)
    with pytest.raises(TypeError, match="pool must be an AsyncConnectionPool"):
        pool_context(dsn)  # type: ignore[arg-type]


async def test_a_response_that_is_streamed_ends_with_its_transaction(
    dsn: str, table: str, backends: Backends
) -> None:
    """The handler returns when all is sent; the transaction lasts until then."""

    async def stream(request: web.Request) -> web.StreamResponse:
        conn = await transaction(request)
        await conn.execute(f"INSERT INTO {table} VALUES (1)")
        response = web.StreamResponse()
        await response.prepare(request)
        cursor = await conn.execute(f"SELECT x FROM {table}")
        async for (x,) in cursor:
            await response.write(str(x).encode())
        return response

    app = make_app(dsn, table)
    app.add_routes([web.get("/stream", stream)])
    async with serve(app) as client:
        assert await (await client.get("/stream")).text() == "1"
        await at_rest(app[POOL])
    assert backends.rows(table) == [1]


async def test_several_pools_have_a_transaction_each(
    dsn: str, table: str, backends: Backends
) -> None:
    """The key selects the pool, also in a sub-application."""

    async def work(request: web.Request) -> web.Response:
        for key in (POOL, OTHER):
            conn = await transaction(request, key)
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
        assert await transaction(request) is not await transaction(request, OTHER)
        return web.Response(status=int(request.query["status"]))

    inner = web.Application(middlewares=[transaction_per_request(OTHER)])
    inner.add_routes([web.get("/work", work)])
    app = make_app(dsn, table)
    app.cleanup_ctx.append(pool_context(AsyncConnectionPool(dsn, min_size=1), OTHER, wait=True))
    app.add_subapp("/inner", inner)
    async with serve(app) as client:
        assert (await client.get("/inner/work?status=500")).status == 500
        assert backends.rows(table) == []
        assert (await client.get("/inner/work?status=200")).status == 200
        assert backends.rows(table) == [1, 1]


async def test_an_existing_pool_is_used_and_left_open(dsn: str, table: str) -> None:
    """So a test can replace the app's pool by its own."""
    async with AsyncConnectionPool(dsn, min_size=1) as mine:
        app = make_app("host=nowhere.invalid", table)
        app[POOL] = mine
        async with serve(app) as client:
            assert (await client.get("/work?x=1&status=500")).status == 500
        assert not mine.closed
        assert (await at_rest(mine)).size == 1


async def test_the_pools_are_open_during_later_cleanup_contexts(dsn: str) -> None:
    """The pools are closed after those contexts have ended."""
    seen = []
    pool = AsyncConnectionPool(dsn, min_size=1)

    async def prepare(app: web.Application) -> AsyncIterator[None]:
        seen.append(await app[POOL].fetchval("SELECT 1"))
        yield
        seen.append(await app[POOL].fetchval("SELECT 2"))

    app = web.Application()
    app.cleanup_ctx.extend([pool_context(pool), prepare])
    async with serve(app):
        assert seen == [1]
    assert seen == [1, 2]
    assert pool.closed


async def test_readiness_is_503_while_a_server_is_down_and_health_is_not(
    server: Server, dsn: str, table: str
) -> None:
    """The orchestrator must not kill the process, and must send it no traffic."""

    async def knows_the_token(request: web.Request) -> bool:
        return request.headers.get("x-token") == "secret"

    nowhere = psycopg.conninfo.make_conninfo(dsn, port="1")
    app = make_app(dsn, table)
    app.cleanup_ctx.append(pool_context(AsyncConnectionPool(nowhere, min_size=1), OTHER))
    app.add_routes(
        [
            web.get("/health", health),
            web.get("/ready", ready()),
            web.get("/all", ready(POOL, OTHER, details=knows_the_token)),
        ]
    )

    async def ask(client: Any, path: str, token: str = "") -> tuple[int, Any]:
        async with client.get(path, headers={"x-token": token}) as response:
            return response.status, await response.json()

    async with serve(app) as client:
        await at_rest(app[POOL])
        status, body = await ask(client, "/ready")
        assert (status, body) == (200, {"status": "ok"})
        await eventually(lambda: app[OTHER].stats().connects_failed)
        assert await ask(client, "/all", "wrong") == (503, {"status": "down"})
        status, body = await ask(client, "/all", "secret")
        assert (status, body["pools"].keys()) == (503, {"pool", "other"})
        assert body["pools"]["pool"]["size"] == 1
        await server.stop()
        await eventually(lambda: app[POOL].stats().idle == 0)
        assert (await ask(client, "/ready"))[0] == 503
        assert await ask(client, "/health") == (200, {"status": "ok"})
        await server.start()
        await at_rest(app[POOL])
        assert (await ask(client, "/ready"))[0] == 200


async def test_no_connection_in_time_is_503_with_retry_after(dsn: str, table: str) -> None:
    """The header says when the client may retry."""
    app = make_app(dsn, table, timeout=0.01)
    async with serve(app) as client:
        conns = [await app[POOL].acquire() for _ in range(4)]
        response = await client.get("/work?x=1")
        assert (response.status, response.headers["retry-after"]) == (503, "7")
        for conn in conns:
            await app[POOL].release(conn)
