"""The pool in Starlette and FastAPI: which requests are committed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import httpx
import psycopg
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Message, Scope

from asyncpool import AsyncConnectionPool
from asyncpool.integrations import fastapi
from asyncpool.integrations.fastapi import ConnectionDep, Pool, RequestTransaction, Transaction
from asyncpool.integrations.starlette import (
    TransactionPerRequest,
    busy,
    health_route,
    lifespan,
    pool,
    readiness_route,
    transaction,
)
from asyncpool.testing import Server

from ._tools import Backends, at_rest, client_of, eventually, in_time


@asynccontextmanager
async def serve(app: Any, *, raising: bool = False) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an app whose lifespan has begun."""
    async with (
        app.router.lifespan_context(app),
        client_of(app, raising=raising) as client,
    ):
        yield client


def starlette(dsn: str, table: str, **options: Any) -> Starlette:
    """An app whose `/work` writes a row, then acts as its query string says."""

    async def work(request: Request) -> Response:
        conn = await transaction(request)
        await conn.execute(f"INSERT INTO {table} VALUES (%s)", [request.query_params["x"]])
        if request.query_params.get("then") == "raise":
            raise ValueError("no such colour")
        if request.query_params.get("then") == "http":
            raise HTTPException(int(request.query_params["status"]))
        if request.query_params.get("then") == "sql":
            await conn.execute("SELECT 1/0")
        assert await transaction(request) is conn
        return PlainTextResponse("done", int(request.query_params.get("status", 200)))

    async def nothing(request: Request) -> Response:
        return PlainTextResponse(str(pool(request).stats().leased))

    return Starlette(
        routes=[Route("/work", work), Route("/nothing", nothing)],
        middleware=[Middleware(TransactionPerRequest, **options)],
        lifespan=lifespan(lambda: AsyncConnectionPool(dsn, min_size=1)),
        exception_handlers=busy(),
    )


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("status=302", 302),
        ("status=404", 404),
        ("status=499", 499),
        ("status=500", 500),
        ("status=503", 503),
        ("then=http&status=409", 409),
        ("then=http&status=503", 503),
        ("then=raise", 500),
        ("then=sql", 500),
    ],
)
async def test_a_request_is_committed_unless_it_fails(
    dsn: str, table: str, backends: Backends, query: str, status: int
) -> None:
    """An unhandled exception or a status of 500 or higher rolls back."""
    app = starlette(dsn, table)
    async with serve(app) as client:
        response = await client.get(f"/work?x=1&{query}")
        assert response.status_code == status
        assert backends.rows(table) == ([1] if status < 500 else [])
        assert (await at_rest(app.state.pool)).size == 1


@pytest.mark.parametrize(("lowest", "kept"), [(400, [200, 399]), (600, [200, 399, 404, 500])])
async def test_the_lowest_status_that_rolls_back_is_a_choice(
    dsn: str, table: str, backends: Backends, lowest: int, kept: list[int]
) -> None:
    """With 400 client errors roll back too; with 600 only exceptions do."""
    async with serve(starlette(dsn, table, roll_back_from=lowest)) as client:
        for status in (200, 399, 404, 500):
            await client.get(f"/work?x={status}&status={status}")
        await client.get("/work?x=0&then=raise")
    assert backends.rows(table) == kept


@pytest.mark.parametrize("status", [200, 700, "500", None])
async def test_what_is_no_lowest_status_is_refused(status: Any) -> None:
    """The error is raised when the middleware is made, and shows the value."""
    with pytest.raises(ValueError, match=f"roll_back_from.*{status}"):
        TransactionPerRequest(Starlette(), roll_back_from=status)


async def test_a_request_without_a_transaction_leases_nothing(dsn: str, table: str) -> None:
    """The first request for the transaction begins it."""
    async with serve(starlette(dsn, table)) as client:
        assert (await client.get("/nothing")).text == "0"


async def test_a_commit_that_fails_is_the_requests_failure(
    dsn: str, table: str, backends: Backends
) -> None:
    """The client gets no success: the prepared response is discarded."""
    backends.ask(f"ALTER TABLE {table} ADD UNIQUE (x) DEFERRABLE INITIALLY DEFERRED")
    async with serve(starlette(dsn, table)) as client:
        assert (await client.get("/work?x=1")).status_code == 200
        response = await client.get("/work?x=1")
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        assert (await client.get("/work?x=2")).status_code == 200
    assert backends.rows(table) == [1, 2]


async def test_after_the_response_began_there_is_no_transaction(
    dsn: str, table: str, backends: Backends
) -> None:
    """The error tells a stream and a background task to use the pool; the row is committed."""
    seen: list[Any] = []

    async def later(request: Request) -> Any:
        with pytest.raises(RuntimeError, match="ended with its response"):
            await transaction(request)
        seen.append(backends.rows(table))

    async def stream(request: Request) -> Response:
        conn = await transaction(request)
        await conn.execute(f"INSERT INTO {table} VALUES (7)")

        async def rows() -> AsyncIterator[str]:
            await later(request)
            yield str(await pool(request).fetchval(f"SELECT x FROM {table}"))

        return StreamingResponse(rows(), background=BackgroundTask(later, request))

    app = starlette(dsn, table)
    app.router.routes.append(Route("/stream", stream))
    async with serve(app, raising=True) as client:
        assert (await client.get("/stream")).text == "7"
    assert seen == [[7], [7]]


async def test_a_transaction_without_its_middleware_is_an_error(dsn: str) -> None:
    """The error names the middleware."""

    async def work(request: Request) -> Response:
        await transaction(request)
        raise AssertionError

    app = Starlette(
        routes=[Route("/", work)], lifespan=lifespan(AsyncConnectionPool(dsn, min_size=1))
    )
    async with serve(app, raising=True) as client:
        with pytest.raises(LookupError, match=r"TransactionPerRequest\(name='pool'\)"):
            await client.get("/")


async def test_two_tasks_of_a_request_share_its_transaction(
    dsn: str, table: str, backends: Backends
) -> None:
    """Both may ask for it concurrently; only one connection is leased."""

    async def work(request: Request) -> Response:
        conns = await asyncio.gather(*(transaction(request) for _ in range(5)))
        assert len(set(conns)) == 1
        return PlainTextResponse(str(pool(request).stats().leased))

    app = starlette(dsn, table)
    app.router.routes.append(Route("/both", work))
    async with serve(app, raising=True) as client:
        assert (await client.get("/both")).text == "1"


async def ask(app: Any, path: str, query: str = "") -> list[Message]:
    """Return an app's response messages to a GET, run in this task."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("kind", ["task", "task, twice", "scope"])
@pytest.mark.parametrize("moment", ["before", "borrowing", "working"])
async def test_a_request_that_is_cancelled_is_rolled_back(
    dsn: str, table: str, backends: Backends, kind: str, moment: str
) -> None:
    """The cancellation comes at any await, from asyncio, or repeatedly from an anyio scope."""
    app = starlette(dsn, table)

    async def slow(request: Request) -> Response:
        conn = await transaction(request)
        await conn.execute(f"INSERT INTO {table} VALUES (1)")
        await conn.execute("SELECT pg_sleep(60)")
        raise AssertionError

    app.router.routes.append(Route("/slow", slow))
    scope = anyio.CancelScope()

    async def request() -> None:
        with scope:
            await ask(app, "/slow")

    async with app.router.lifespan_context(app):
        the_pool: AsyncConnectionPool = app.state.pool
        held = await the_pool.acquire() if moment == "borrowing" else None
        task = asyncio.create_task(request())
        if moment == "borrowing":
            await eventually(lambda: the_pool.stats().waiting == 1)
        elif moment == "working":
            await eventually(lambda: backends.running("pg_sleep") == 1)
        if kind == "scope":
            scope.cancel()
        else:
            for _ in range(2 if "twice" in kind else 1):
                task.cancel()
                await asyncio.sleep(0)
        await in_time(asyncio.wait([task]))
        assert task.cancelled() == (kind != "scope")
        if held is not None:
            await the_pool.release(held)
        assert (await at_rest(the_pool)).size == 1
        await eventually(lambda: not backends.running("pg_sleep"))
    assert backends.rows(table) == []


# Lifespan


async def test_the_pools_are_open_around_the_apps_own_lifespan(dsn: str) -> None:
    """The pools are open from its start to its end, and closed afterwards."""
    seen: list[Any] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, str]]:
        seen.append(await app.state.pool.fetchval("SELECT 1"))
        yield {"its": "state"}
        seen.append(await app.state.other.fetchval("SELECT 2"))

    main, other = AsyncConnectionPool(dsn, min_size=1), AsyncConnectionPool(dsn, min_size=1)
    app = Starlette(lifespan=lifespan(main, other=other, inner=own))
    async with app.router.lifespan_context(app) as state:
        assert state == {"its": "state"}
        assert (app.state.pool, app.state.other) == (main, other)
        assert not main.closed
    assert seen == [1, 2]
    assert main.closed
    assert other.closed
    assert not hasattr(app.state, "pool")


async def test_an_app_starts_again_with_a_new_pool(dsn: str) -> None:
    """This needs a callable instead of a pool."""
    app = Starlette(lifespan=lifespan(lambda: AsyncConnectionPool(dsn, min_size=1)))
    pools = []
    for _ in range(2):
        async with app.router.lifespan_context(app):
            pools.append(app.state.pool)
            assert await app.state.pool.fetchval("SELECT 1") == 1
    assert pools[0] is not pools[1]


async def test_an_existing_pool_is_used_and_left_open(dsn: str) -> None:
    """So a test can replace the app's pool by its own."""

    def never() -> AsyncConnectionPool:
        raise AssertionError("the app's own pool is not to be made")

    app = Starlette(lifespan=lifespan(never))
    async with AsyncConnectionPool(dsn, min_size=1) as mine:
        app.state.pool = mine
        async with app.router.lifespan_context(app):
            assert app.state.pool is mine
        assert not mine.closed


async def test_an_app_whose_own_lifespan_fails_leaves_no_pool_open(dsn: str) -> None:
    """The start or the end may fail, or one of several pools cannot be opened."""

    @asynccontextmanager
    async def fails(app: Starlette) -> AsyncIterator[None]:
        await app.state.pool.fetchval("SELECT 1")
        raise ValueError("at the start")
        yield

    def broken() -> AsyncConnectionPool:
        raise ValueError("at the second pool")

    for options in ({"inner": fails}, {"other": broken}):
        main = AsyncConnectionPool(dsn, min_size=1)
        app = Starlette(lifespan=lifespan(main, **options))
        with pytest.raises(ValueError, match="at the"):
            async with app.router.lifespan_context(app):
                raise AssertionError
        assert main.closed


async def test_a_start_that_waits_fails_without_the_server(dsn: str) -> None:
    """`wait` keeps an app that cannot serve from starting."""
    nowhere = psycopg.conninfo.make_conninfo(dsn, port="1")
    app = Starlette(lifespan=lifespan(AsyncConnectionPool(nowhere), wait=True, timeout=0.2))
    with pytest.raises(psycopg.OperationalError, match="not ready"):
        async with app.router.lifespan_context(app):
            raise AssertionError


def test_what_is_no_pool_is_refused_at_once(asyncpool_dsn: str) -> None:
    """The error is raised when the lifespan is made, not when the app starts."""
    with pytest.raises(TypeError, match="pool must be an AsyncConnectionPool"):
        lifespan(asyncpool_dsn)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="reports must be an AsyncConnectionPool"):
        lifespan(AsyncConnectionPool(asyncpool_dsn), reports=3)  # type: ignore[arg-type]


async def test_a_mounted_app_without_a_pool_gets_a_helpful_error(dsn: str) -> None:
    """A mounted app has a state of its own unless it gets the outer one."""

    async def one(request: Request) -> Response:
        return PlainTextResponse(str(await pool(request).fetchval("SELECT 1")))

    sub = Starlette(routes=[Route("/one", one)])
    app = Starlette(
        routes=[Mount("/sub", sub)], lifespan=lifespan(AsyncConnectionPool(dsn, min_size=1))
    )
    async with serve(app, raising=True) as client:
        with pytest.raises(LookupError, match="no pool 'pool' in the app's state"):
            await client.get("/sub/one")
        sub.state = app.state
        assert (await client.get("/sub/one")).text == "1"


# Health


async def test_readiness_is_503_while_a_server_is_down_and_health_is_not(
    server: Server, dsn: str
) -> None:
    """The orchestrator must not kill the process, and must send it no traffic."""
    app = Starlette(
        routes=[health_route(), readiness_route()],
        lifespan=lifespan(AsyncConnectionPool(dsn, min_size=1), wait=True),
    )
    async with serve(app) as client:
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ok"})
        await server.stop()
        await eventually(lambda: app.state.pool.stats().idle == 0)
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "down"})
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        await server.start()
        await at_rest(app.state.pool)
        assert (await client.get("/ready")).status_code == 200


async def test_reports_are_for_clients_that_the_app_admits(dsn: str) -> None:
    """They have addresses and errors in them; everybody else gets the status alone."""

    async def is_admin(request: Request) -> bool:
        return request.headers.get("x-token") == "secret"

    app = Starlette(
        routes=[
            readiness_route("/plain", details=lambda r: r.headers.get("x-token") == "secret"),
            readiness_route("/async", details=is_admin),
            readiness_route("/public"),
        ],
        lifespan=lifespan(AsyncConnectionPool(dsn, min_size=1), wait=True),
    )
    admin = {"x-token": "secret"}
    async with serve(app) as client:
        for path in ("/plain", "/async"):
            assert (await client.get(path)).json() == {"status": "ok"}
            assert (await client.get(path, headers={"x-token": "no"})).json() == {"status": "ok"}
            report = (await client.get(path, headers=admin)).json()["pools"]["pool"]
            assert report == (await app.state.pool.health()).as_dict() | {
                "latency": report["latency"]
            }
        assert (await client.get("/public", headers=admin)).json() == {"status": "ok"}


async def test_readiness_is_of_all_the_pools_that_it_names(dsn: str) -> None:
    """A pool that is down makes it 503; a busy pool does not."""
    nowhere = psycopg.conninfo.make_conninfo(dsn, port="1")
    app = Starlette(
        routes=[
            readiness_route("/all", "pool", "other", details=lambda request: True),
            readiness_route("/one", "other"),
        ],
        lifespan=lifespan(
            AsyncConnectionPool(nowhere, min_size=1),
            other=AsyncConnectionPool(dsn, min_size=1),
        ),
    )
    async with serve(app) as client:
        await app.state.other.wait()
        await eventually(lambda: app.state.pool.stats().connects_failed)
        everything = await client.get("/all")
        assert everything.status_code == 503
        pools = everything.json()["pools"]
        assert [pools[name]["status"] for name in ("pool", "other")] == ["down", "ok"]
        async with app.state.other.connection():
            waiter = asyncio.create_task(app.state.other.execute("BEGIN"))
            await eventually(lambda: app.state.other.stats().waiting)
            one = await client.get("/one")
            assert (one.status_code, one.json()["status"]) == (200, "degraded")
        await waiter


async def test_no_connection_in_time_is_503_with_retry_after(dsn: str) -> None:
    """A full wait queue gives the client the same response."""

    async def one(request: Request) -> Response:
        return PlainTextResponse(str(await pool(request).fetchval("SHOW TimeZone", timeout=0)))

    async def waits(request: Request) -> Response:
        async with pool(request).connection():
            raise AssertionError

    main = AsyncConnectionPool(dsn, min_size=1, max_waiting=1)
    app = Starlette(
        routes=[Route("/one", one), Route("/waits", waits)],
        lifespan=lifespan(main, wait=True),
        exception_handlers=busy(retry_after=7),
    )
    async with serve(app) as client:
        async with main.connection():
            response = await client.get("/one")
            assert (response.status_code, response.headers["retry-after"]) == (503, "7")
            waiter = asyncio.create_task(main.acquire())
            await eventually(lambda: main.stats().waiting)
            response = await client.get("/waits")
            assert (response.status_code, response.headers["retry-after"]) == (503, "7")
        await main.release(await waiter)


# FastAPI


Reports = Annotated[psycopg.AsyncConnection, fastapi.connection("reports")]


async def user(conn: ConnectionDep) -> psycopg.AsyncConnection:
    """A dependency that uses the connection too."""
    return conn


User = Annotated[psycopg.AsyncConnection, Depends(user, scope="function")]


def api(dsn: str, table: str) -> FastAPI:
    """An app with a handler for each dependency."""
    app = FastAPI(
        lifespan=lifespan(
            lambda: AsyncConnectionPool(dsn, min_size=1),
            reports=lambda: AsyncConnectionPool(
                dsn, min_size=1, kwargs={"options": "-c default_transaction_read_only=on"}
            ),
        )
    )
    app.add_middleware(TransactionPerRequest)
    insert = f"INSERT INTO {table} VALUES (%s)"

    def then(status: int) -> Any:
        if status < 0:
            raise HTTPException(-status)
        return JSONResponse({"status": status}, status)

    @app.get("/connection")
    async def connection(x: int, status: int, conn: ConnectionDep) -> Any:
        await conn.execute(insert, [x])
        return then(status)

    @app.get("/transaction")
    async def transaction(x: int, status: int, conn: Transaction) -> Any:
        await conn.execute(insert, [x])
        return then(status)

    @app.get("/request")
    async def request(x: int, status: int, conn: RequestTransaction) -> Any:
        await conn.execute(insert, [x])
        return then(status)

    @app.get("/shared")
    async def shared(conn: ConnectionDep, of_user: User, pool: Pool) -> Any:
        return [conn is of_user, pool.stats().leased]

    @app.get("/both")
    async def both(conn: ConnectionDep, reports: Reports) -> Any:
        cursors = [await each.execute("SHOW transaction_read_only") for each in (conn, reports)]
        return [(await cursor.fetchone() or ("",))[0] for cursor in cursors]

    return app


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/request"])
async def test_a_dependency_commits_before_the_response_and_rolls_back_with_an_exception(
    dsn: str, table: str, backends: Backends, path: str
) -> None:
    """FastAPI's scopes roll back on an HTTPException; the request's transaction on a status."""
    async with serve(api(dsn, table)) as client:
        for x, status in enumerate([200, 404, 500, -404, -500]):
            response = await client.get(f"{path}?x={x}&status={status}")
            assert response.status_code == abs(status)
    assert backends.rows(table) == ([0, 1, 3] if path == "/request" else [0, 1, 2])


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/request"])
async def test_the_commit_of_a_dependency_comes_before_the_first_byte(
    dsn: str, table: str, backends: Backends, path: str
) -> None:
    """A client with the response sees the row, and the connection is idle."""
    app = api(dsn, table)
    seen = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        seen.append((message["type"], backends.rows(table), app.state.pool.stats().leased))

    query = b"x=1&status=200"
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": query}
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    assert seen == [("http.response.start", [1], 0), ("http.response.body", [1], 0)]


async def test_the_dependencies_of_a_request_share_its_connection(dsn: str, table: str) -> None:
    """Nested dependencies share it too; each pool has a connection of its own."""
    async with serve(api(dsn, table)) as client:
        assert (await client.get("/shared")).json() == [True, 1]
        assert (await client.get("/both")).json() == ["off", "on"]


def test_starlettes_part_needs_no_fastapi() -> None:
    """The ASGI part does not need Starlette either."""
    for module, others in (("starlette", ["fastapi"]), ("asgi", ["fastapi", "starlette"])):
        script = (
            f"import sys, asyncpool.integrations.{module}\n"
            f"assert not sys.modules.keys() & {set(others)}"
        )
        subprocess.run([sys.executable, "-c", script], check=True)


async def test_what_is_no_http_request_passes_through(dsn: str, table: str) -> None:
    """A WebSocket has no status, so its handler must use the pool."""

    async def echo(socket: Any) -> None:
        await socket.accept()
        await socket.send_text(str(await pool(socket).fetchval("SELECT 1")))
        with pytest.raises(LookupError, match="TransactionPerRequest"):
            await transaction(socket)
        await socket.close()

    app = starlette(dsn, table)
    app.router.routes.append(WebSocketRoute("/echo", echo))
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app):
        scope = {"type": "websocket", "path": "/echo", "headers": [], "query_string": b""}
        await app(scope, receive, send)
    assert [message.get("text") for message in sent] == [None, "1", None]
