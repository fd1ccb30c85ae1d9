"""The deadline, priority and flow of a request, which the web frameworks' middlewares set."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from asyncpool.integrations import aiohttp, asgi, starlette

from ._tools import client_of, eventually, in_time
from ._web import each_framework, serve, use

HEADER = "X-Request-Timeout"


def tenant_of(request: Any) -> str | None:
    """Return the flow of a request of any framework."""
    found: str | None = request.headers.get("x-tenant")
    return found


async def priority_of(request: Any) -> int:
    """Return the priority of a request of any framework, when it is known."""
    await asyncio.sleep(0)
    return int(request.headers.get("x-priority", 0))


async def is_refused(pool: AsyncConnectionPool, request: Any) -> bool:
    """Whether a request gets 503 while the pool's only connection is in use, or else waits."""
    async with pool.connection():
        task = asyncio.ensure_future(request)
        await eventually(lambda: task.done() or pool.stats().waiting)
        refused: bool = task.done()
    assert (await in_time(task)).status_code == (503 if refused else 200)
    return refused


@each_framework
@pytest.mark.exhaustive
async def test_a_deadline_in_a_header_makes_the_pool_refuse_at_once(
    dsn: str, framework: str
) -> None:
    """The pool knows how fast it serves, so the request does not wait for its deadline."""
    errors: list[Exception] = []
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)

    async def handler(request: Any) -> str:
        try:
            return await use(pool)(request)
        except Exception as error:
            errors.append(error)
            raise

    async with serve(framework, pool, {"/use": handler}, limits={"header": HEADER}) as client:
        get = [asyncio.create_task(client.get("/use")) for _ in range(40)]
        await eventually(lambda: sum(each.done() for each in get) >= 18)
        served = sum(each.done() for each in get)
        response = await client.get("/use", headers={HEADER: "0.4"})
        meanwhile = sum(each.done() for each in get) - served
        assert {each.status_code for each in await asyncio.gather(*get)} == {200}
    assert response.status_code == 503
    assert response.json() == {
        "detail": "busy, try again",
        "reason": "deadline",
        "retry_after": int(response.headers["retry-after"]),
    }
    (error,) = errors
    assert isinstance(error, TooManyRequests)
    assert error.rule == "deadline"
    assert meanwhile < 6, "it waited for its deadline, in which eight are served"


@each_framework
@pytest.mark.parametrize("text", ["-1", "-0.5", "nan", "inf", "-inf", "soon", "", "1 s", "0x1"])
async def test_nonsense_in_the_header_is_ignored(dsn: str, framework: str, text: str) -> None:
    """The request waits as without it."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    limits = {"header": HEADER.lower()}
    async with serve(framework, pool, {"/use": use(pool)}, limits=limits) as client:
        assert not await is_refused(pool, client.get("/use", headers={HEADER: text}))


@each_framework
@pytest.mark.parametrize(
    ("seconds", "text", "refused"),
    [(None, "0", True), (60, "0", True), (0, "60", True), (0, None, True), (60, "60", False)],
)
async def test_the_shortest_time_holds(
    dsn: str, framework: str, seconds: float | None, text: str | None, *, refused: bool
) -> None:
    """A client may ask for less time, and not for more."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    limits = {"seconds": seconds, "header": HEADER}
    headers = {} if text is None else {HEADER: text}
    async with serve(framework, pool, {"/use": use(pool)}, limits=limits) as client:
        assert await is_refused(pool, client.get("/use", headers=headers)) == refused


@each_framework
async def test_a_client_may_not_ask_unless_the_app_says_where(dsn: str, framework: str) -> None:
    """Without `header` no header counts."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    async with serve(framework, pool, {"/use": use(pool)}, limits={}) as client:
        assert not await is_refused(pool, client.get("/use", headers={HEADER: "0"}))


@each_framework
async def test_a_function_of_the_request_chooses_its_time(dsn: str, framework: str) -> None:
    """Here by the path, which is known before the route is."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    limits = {"seconds": lambda request: None if request.url.path == "/long" else 0}
    handlers = {"/long": use(pool), "/short": use(pool)}
    async with serve(framework, pool, handlers, limits=limits) as client:
        assert not await is_refused(pool, client.get("/long"))
        assert await is_refused(pool, client.get("/short"))


@each_framework
@pytest.mark.parametrize(
    ("limits", "headers"),
    [
        ({"flow": tenant_of}, [{"x-tenant": "large"}, {"x-tenant": "small"}]),
        ({"priority": priority_of}, [{}, {"x-priority": "1"}]),
    ],
    ids=["flow", "priority"],
)
@pytest.mark.exhaustive
async def test_a_small_tenant_is_served_while_a_large_one_waits(
    dsn: str, framework: str, limits: dict[str, Any], headers: list[dict[str, str]]
) -> None:
    """Its turn comes next, though the other's requests have been waiting before."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    large, small = headers
    async with serve(framework, pool, {"/use": use(pool)}, limits=limits) as client:
        tasks = [asyncio.create_task(client.get("/use", headers=large)) for _ in range(24)]
        await eventually(lambda: pool.stats().waiting >= 20)
        before = sum(each.done() for each in tasks)
        assert (await client.get("/use", headers=small)).status_code == 200
        assert sum(each.done() for each in tasks) - before <= 4
        assert {each.status_code for each in await asyncio.gather(*tasks)} == {200}


async def test_the_limits_of_a_request_end_with_it(dsn: str) -> None:
    """The task may go on with other work, as the client of this test does."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)

    async def stream(request: Request) -> Response:
        async def texts() -> AsyncIterator[str]:
            yield "a"
            yield "b"

        return StreamingResponse(texts())

    app = Starlette(
        routes=[Route("/stream", stream), Route("/plain", lambda request: Response())],
        middleware=[Middleware(starlette.RequestLimits, 0)],
    )
    async with pool, client_of(app) as client, pool.connection():
        for path in ("/stream", "/plain"):
            assert (await client.get(path)).status_code == 200
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await pool.acquire()


# Starlette and FastAPI


class Plain(BaseHTTPMiddleware):
    """Middleware that runs the app in a task of its own."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        """Do nothing else."""
        return await call_next(request)


def fastapi_app(pool: AsyncConnectionPool, *middleware: Any) -> FastAPI:
    """An app whose handlers use the pool in several ways."""
    app = FastAPI(
        lifespan=starlette.lifespan(pool, wait=True),
        exception_handlers=starlette.busy(),
        middleware=middleware,
    )

    async def one() -> Any:
        return await pool.fetchval("SELECT 1")

    @app.get("/plain")
    async def plain() -> Any:
        return await one()

    @app.get("/thread")
    def thread() -> Any:
        return anyio.from_thread.run(one)

    @app.get("/task")
    async def task() -> Any:
        return await asyncio.create_task(one())

    @app.get("/stream")
    async def stream() -> Response:
        async def texts() -> AsyncIterator[str]:
            yield "one, "
            try:
                yield str(await one())
            except PoolTimeout:
                yield "refused"

        return StreamingResponse(texts())

    @app.get("/background")
    async def background(later: BackgroundTasks) -> None:
        later.add_task(note, app, one)

    return app


async def note(app: FastAPI, one: Any) -> None:
    """Keep in the app's state whether the work after a response was refused."""
    try:
        app.state.later = await one()
    except PoolTimeout:
        app.state.later = "refused"


LIMITED = Middleware(starlette.RequestLimits, 0)


@pytest.mark.parametrize("path", ["/plain", "/thread", "/task"])
@pytest.mark.parametrize(
    "middleware",
    [[LIMITED], [LIMITED, Middleware(Plain)], [Middleware(Plain), LIMITED]],
    ids=["alone", "outside", "inside"],
)
async def test_the_deadline_holds_wherever_the_handler_runs(
    dsn: str, path: str, middleware: list[Any]
) -> None:
    """In a thread, in tasks, and with a `BaseHTTPMiddleware` before or after it."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    app = fastapi_app(pool, *middleware)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get(path)).json() == 1
        assert await is_refused(pool, client.get(path))


async def test_the_deadline_holds_for_a_streamed_response(dsn: str) -> None:
    """A stream that may last longer needs a function for `seconds`."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    app = fastapi_app(pool, LIMITED)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/stream")).text == "one, 1"
        async with pool.connection():
            assert (await client.get("/stream")).text == "one, refused"


@pytest.mark.parametrize(
    ("middleware", "found"),
    [([LIMITED], 1), ([Middleware(Plain), LIMITED], 1), ([LIMITED, Middleware(Plain)], "refused")],
    ids=["alone", "inside", "outside"],
)
async def test_background_tasks_have_no_deadline(
    dsn: str, middleware: list[Any], found: object
) -> None:
    """They have it still where the handler runs in a task that the middleware does not see."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    app = fastapi_app(pool, *middleware)
    async with app.router.lifespan_context(app), client_of(app) as client:
        async with pool.connection():
            task = asyncio.create_task(client.get("/background"))
            await eventually(lambda: task.done() or pool.stats().waiting)
        assert (await in_time(task)).status_code == 200
        await eventually(lambda: hasattr(app.state, "later"))
        assert app.state.later == found


async def test_background_tasks_keep_the_flow(dsn: str) -> None:
    """Work after the response counts for the tenant as before it."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)

    async def work(request: Request) -> Response:
        return PlainTextResponse(
            "", background=BackgroundTask(pool.execute, "SELECT pg_sleep(0.05)")
        )

    app = Starlette(
        routes=[Route("/", work)],
        middleware=[Middleware(starlette.RequestLimits, 0, flow=tenant_of)],
        lifespan=starlette.lifespan(pool),
    )
    async with app.router.lifespan_context(app), client_of(app) as client:
        large = [asyncio.create_task(client.get("/", headers={"x-tenant": "a"})) for _ in range(24)]
        await eventually(lambda: pool.stats().waiting >= 20)
        before = sum(each.done() for each in large)
        await client.get("/", headers={"x-tenant": "b"})
        assert sum(each.done() for each in large) - before <= 4
        await asyncio.gather(*large)


@pytest.mark.parametrize("middleware", [asgi.RequestLimits, starlette.RequestLimits])
async def test_a_websocket_has_no_deadline(dsn: str, middleware: Any) -> None:
    """It lasts; the functions of the app are called for it too."""
    pool, seen = AsyncConnectionPool(dsn, min_size=1, max_size=1), []
    sent: list[Any] = []

    def flow_of(found: Any) -> str:
        seen.append(found["type"])  # an HTTPConnection is a mapping, as a scope is
        return "sockets"

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(await pool.fetchval("SELECT 1")))
        await websocket.close()

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Starlette(
        routes=[WebSocketRoute("/talk", talk)],
        middleware=[Middleware(middleware, 0, flow=flow_of)],
        lifespan=starlette.lifespan(pool),
    )
    scope = {"type": "websocket", "path": "/talk", "headers": [], "query_string": b""}
    async with app.router.lifespan_context(app):
        async with pool.connection():
            task = asyncio.create_task(app(scope, receive, send))
            await eventually(lambda: task.done() or pool.stats().waiting)
            assert not task.done()
        await in_time(task)
    assert [each.get("text") for each in sent] == [None, "1", None]
    assert seen == ["websocket"]


# aiohttp


async def test_a_websocket_of_aiohttp_has_no_deadline(dsn: str) -> None:
    """The request that begins it has none; other requests do."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)

    async def talk(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_str(str(await pool.fetchval("SELECT 1")))
        await websocket.close()
        return websocket

    async def one(request: web.Request) -> web.Response:
        return web.Response(text=str(await pool.fetchval("SELECT 1")))

    app = web.Application(middlewares=[aiohttp.busy(), aiohttp.request_limits(0)])
    app.cleanup_ctx.append(aiohttp.pool_context(pool))
    app.add_routes([web.get("/talk", talk), web.get("/one", one)])
    async with TestClient(TestServer(app)) as client:
        async with pool.connection():
            assert (await client.get("/one")).status == 503
            websocket = await client.ws_connect("/talk")
            await eventually(lambda: pool.stats().waiting)
        assert await in_time(websocket.receive_str()) == "1"
        await websocket.close()


async def test_a_connection_of_aiohttp_serves_requests_with_limits_of_their_own(dsn: str) -> None:
    """One task serves all requests of a client's connection."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    limits = {"header": HEADER}
    async with serve("aiohttp", pool, {"/use": use(pool)}, limits=limits) as client:
        assert await is_refused(pool, client.get("/use", headers={HEADER: "0"}))
        assert not await is_refused(pool, client.get("/use"))


# Arguments


def litestar_limits(app: Any, *args: Any, **options: Any) -> Any:
    """Make the middleware of Litestar's integration."""
    pytest.importorskip("litestar")
    from asyncpool.integrations.litestar import RequestLimits

    return RequestLimits(app, *args, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: asgi.RequestLimits(Starlette(), **options),
        lambda **options: starlette.RequestLimits(Starlette(), **options),
        lambda **options: litestar_limits(Starlette(), **options),
        aiohttp.request_limits,
    ],
    ids=["asgi", "starlette", "litestar", "aiohttp"],
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": -1}, "seconds must be zero or more"),
        ({"seconds": math.nan}, "seconds must be zero or more"),
        ({"seconds": "5"}, "seconds must be a number of seconds, not '5'"),
        ({"seconds": True}, "seconds must be a number of seconds"),
        ({"header": ""}, "header must be a header's name"),
        ({"header": "X-Request Timeout"}, "header must be a header's name"),
        ({"header": b"x-request-timeout"}, "header must be a header's name"),
        ({"priority": 1.5}, "priority must be an int, not 1.5"),
        ({"flow": ["a"]}, "flow must be hashable"),
    ],
)
def test_a_bad_argument_is_refused_when_the_middleware_is_made(
    make: Any, options: dict[str, Any], message: str
) -> None:
    """The error names the argument and shows the value."""
    with pytest.raises((TypeError, ValueError), match=message):
        make(**options)


async def test_what_a_function_returns_is_checked_too() -> None:
    """The request fails, and its error says why; one that raises is the request's failure."""

    def fails(request: Any) -> Any:
        raise LookupError("no tenant")

    for options, error in (
        ({"priority": lambda request: "high"}, TypeError),
        ({"flow": lambda request: []}, TypeError),
        ({"seconds": lambda request: -1}, ValueError),
        ({"flow": fails}, LookupError),
    ):
        app = Starlette(
            routes=[Route("/", lambda request: Response())],
            middleware=[Middleware(starlette.RequestLimits, **options)],
        )
        async with client_of(app) as client:
            with pytest.raises(error):
                await client.get("/")
