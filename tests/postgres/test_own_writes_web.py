"""A user's session reads what it has written: middleware for ASGI apps and aiohttp."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

import httpx
import litestar
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import FastAPI
from litestar.middleware import DefineMiddleware
from psycopg import AsyncConnection
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asyncpool import Cluster
from asyncpool.integrations import aiohttp as aiohttp_side
from asyncpool.integrations.fastapi import (
    ClusterDep,
    ReadConnection,
    WriteConnection,
    WriteTransaction,
    request_transaction,
)
from asyncpool.integrations.own_writes import ReadOwnWrites
from asyncpool.integrations.starlette import (
    TransactionPerRequest,
    cluster,
    lifespan,
    readiness_route,
)

from ._pair import Pair, opened, started_pair
from ._tools import client_of

COOKIE = "asyncpool_token"
RequestTransactionOfCluster = Annotated[AsyncConnection, request_transaction("cluster")]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The servers of this module."""
    with started_pair() as pair:
        yield pair


@pytest.fixture
def notes(pair: Pair) -> str:
    """The name of a table `(x int)` that both have."""
    name = f"t_{uuid4().hex[:12]}"
    pair.on_primary(f"CREATE TABLE {name} (x int)")
    pair.catch_up()
    return name


def starlette(notes: str, *more: Middleware, **options: Any) -> Starlette:
    """An app that writes and reads, on the cluster in its state."""
    count = f"SELECT count(*) FROM {notes}"

    async def write(request: Request) -> Response:
        async with cluster(request).write.connection() as conn:
            await conn.execute(f"INSERT INTO {notes} VALUES (1)")
        if "redirect" in request.query_params:
            return RedirectResponse("/read", 303)
        return JSONResponse(await cluster(request).read.fetchval(count))

    async def write_one_shot(request: Request) -> Response:
        await cluster(request).write.execute(f"INSERT INTO {notes} VALUES (1)")
        return JSONResponse("ok")

    async def read(request: Request) -> Response:
        return JSONResponse(await cluster(request).read.fetchval(count))

    async def stream(request: Request) -> Response:
        kept = cluster(request)

        async def body() -> AsyncIterator[str]:
            yield f"{await kept.read.fetchval(count)} "
            await kept.write.execute(f"INSERT INTO {notes} VALUES (1)")
            yield f"{await kept.read.fetchval(count)}"

        await kept.write.execute(f"INSERT INTO {notes} VALUES (1)")
        return StreamingResponse(body())

    async def later(request: Request) -> Response:
        kept = cluster(request)

        async def work() -> None:
            await kept.write.execute(f"INSERT INTO {notes} VALUES (1)")
            found.append(await kept.read.fetchval(count))

        return JSONResponse("ok", background=BackgroundTask(work))

    async def socket(websocket: WebSocket) -> None:
        kept: Cluster[Any] = websocket.app.state.cluster
        await websocket.accept()
        await websocket.send_json(await kept.read.fetchval(count))
        await kept.write.execute(f"INSERT INTO {notes} VALUES (1)")
        await websocket.send_json(await kept.read.fetchval(count))
        await websocket.close()

    found: list[int] = []
    app = Starlette(
        routes=[
            Route("/write", write, methods=["POST"]),
            Route("/one-shot", write_one_shot, methods=["POST"]),
            Route("/read", read),
            Route("/stream", stream),
            Route("/later", later),
            WebSocketRoute("/socket", socket),
            readiness_route("/ready", "cluster"),
        ],
        middleware=[Middleware(ReadOwnWrites, **options), *more],
    )
    app.state.found = found
    return app


@asynccontextmanager
async def served(pair: Pair, app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app, which has a cluster whose standby replays nothing."""
    async with opened(pair, token_wait=0.01) as kept:
        app.state.cluster = kept
        with pair.paused():
            async with client_of(app) as client:
                yield client


PASSED = Middleware(BaseHTTPMiddleware, dispatch=lambda request, following: following(request))
"""A middleware that runs the app in a task of its own."""


@pytest.mark.parametrize("more", [(), (PASSED,)], ids=["", "in another task"])
@pytest.mark.parametrize("path", ["/write", "/one-shot", "/write?redirect="])
@pytest.mark.exhaustive
async def test_a_user_reads_what_the_user_has_written(
    pair: Pair, notes: str, path: str, more: tuple[Middleware, ...]
) -> None:
    """In the next requests too; another user sees it when a standby has replayed it."""
    async with served(pair, starlette(notes, *more)) as client:
        assert (await client.get("/read")).json() == 0
        assert not client.cookies
        answer = await client.post(path)
        assert answer.status_code in (200, 303)
        header = answer.headers["set-cookie"]
        assert header.startswith(f"{COOKIE}=")
        assert header.endswith("; Path=/; Max-Age=3600; HttpOnly; SameSite=lax")
        read = await client.get("/read")
        assert read.json() == 1
        assert "set-cookie" not in read.headers
        assert (await client.post("/write")).json() == 2
        assert (await client.get("/read")).json() == 2
        client.cookies.clear()
        assert (await client.get("/read")).json() == 0


@pytest.mark.exhaustive
async def test_a_client_without_cookies_has_a_header(pair: Pair, notes: str) -> None:
    """Of requests and responses; of several tokens the latest counts."""
    app = starlette(notes, cookie=None, header="X-Token")
    async with served(pair, app) as client:
        first = (await client.post("/write")).headers
        second = (await client.post("/write")).headers
        assert "set-cookie" not in first
        given = [("x-token", second["x-token"]), ("X-Token", first["x-token"])]
        answer = await client.get("/read", headers=given)
        assert answer.json() == 2
        assert "x-token" not in answer.headers


@pytest.mark.parametrize(
    "value", ["", "x", "16/", '"', "1/1@", "\u00e9".encode().decode("latin-1"), "0" * 5000, "; ;="]
)
async def test_what_is_no_token_is_ignored(pair: Pair, notes: str, value: str) -> None:
    """Whatever a client sends; a token beside it is used."""
    async with served(pair, starlette(notes)) as client:
        token = (await client.post("/write")).cookies[COOKIE]
        client.cookies.clear()
        cookie = f"a=b; {COOKIE}={value}".encode("latin-1")
        answer = await client.get("/read", headers={b"Cookie": cookie})
        assert answer.json() == 0
        assert "set-cookie" not in answer.headers
        cookie += f'; {COOKIE}="{token}"'.encode()
        assert (await client.get("/read", headers={b"Cookie": cookie})).json() == 1


async def test_a_made_up_token_costs_a_read_of_the_primary(pair: Pair, notes: str) -> None:
    """No more than a write would; it is not sent back."""
    async with served(pair, starlette(notes)) as client:
        for token in ("FFFFFFFF/FFFFFFFF@1", "0/1@4294967295"):
            client.cookies.set(COOKIE, token)
            answer = await client.get("/read")
            assert answer.json() == 0
            assert "set-cookie" not in answer.headers


async def test_a_stream_reads_what_it_writes(pair: Pair, notes: str) -> None:
    """Its cookie covers what was written before the response began."""
    async with served(pair, starlette(notes)) as client:
        answer = await client.get("/stream")
        assert answer.text == "1 2"
        assert "set-cookie" in answer.headers
        assert (await client.get("/read")).json() >= 1


async def test_a_background_task_reads_what_it_writes(pair: Pair, notes: str) -> None:
    """No cookie tells of it."""
    app = starlette(notes)
    async with served(pair, app) as client:
        answer = await client.get("/later")
        assert "set-cookie" not in answer.headers
        assert app.state.found == [1]


async def test_a_websocket_begins_with_the_token_of_its_handshake(pair: Pair, notes: str) -> None:
    """And reads what it writes."""
    app = starlette(notes)
    async with served(pair, app) as client:
        token = (await client.post("/write")).cookies[COOKIE]
        sent: list[Any] = []
        came = [{"type": "websocket.connect"}]

        async def receive() -> Any:
            return came.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"test"), (b"cookie", f"{COOKIE}={token}".encode())]
        scope = {"type": "websocket", "path": "/socket", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
    assert [each["text"] for each in sent if each["type"] == "websocket.send"] == ["1", "2"]
    assert sent[0] == {"type": "websocket.accept", "subprotocol": None, "headers": []}


async def test_a_primary_that_gives_no_token_does_not_hold_up_the_response(
    pair: Pair, notes: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The write is done; a warning says what is missing."""
    app = starlette(notes, timeout=0.05)
    async with served(pair, app) as client:

        async def hangs(timeout: float | None = None) -> Any:
            await asyncio.sleep(60)

        app.state.cluster.write.position = hangs
        with caplog.at_level(logging.WARNING, "asyncpool"):
            answer = await client.post("/one-shot")
        assert answer.json() == "ok"
        assert "set-cookie" not in answer.headers
        assert "carries no token" in caplog.text


async def test_a_cluster_may_be_given_instead_of_its_name(pair: Pair, notes: str) -> None:
    """For apps that keep no state."""
    async with opened(pair) as kept:
        app = starlette(notes, cluster=kept, secure=True, max_age=60, cookie="t")
        app.state.cluster = kept
        async with client_of(app) as client:
            header = (await client.post("/one-shot")).headers["set-cookie"]
            assert header.startswith("t=")
            assert header.endswith("; Path=/; Max-Age=60; HttpOnly; SameSite=lax; Secure")
            assert (await client.get("/ready")).json() == {"status": "ok"}


async def test_an_app_of_litestar_carries_tokens_too(pair: Pair, notes: str) -> None:
    """The middleware is plain ASGI."""
    async with opened(pair, token_wait=0.01) as kept:

        @litestar.post("/write")
        async def write() -> None:
            await kept.write.execute(f"INSERT INTO {notes} VALUES (1)")

        @litestar.get("/read")
        async def read() -> int:
            return int(await kept.read.fetchval(f"SELECT count(*) FROM {notes}"))

        middleware = [DefineMiddleware(ReadOwnWrites, cluster=kept)]
        app = litestar.Litestar(
            [write, read], middleware=middleware, openapi_config=None, logging_config=None
        )
        with pair.paused():
            async with client_of(app) as client:
                assert (await client.post("/write")).status_code == 201
                assert (await client.get("/read")).json() == 1
                client.cookies.clear()
                assert (await client.get("/read")).json() == 0


@pytest.mark.parametrize(
    "options",
    [
        *({"cookie": "a b"}, {"header": ""}, {"cookie": None}, {"max_age": -1}, {"timeout": "1"}),
        {"cookie": "a;b"},
    ],
)
def test_an_invalid_option_is_refused(options: dict[str, Any]) -> None:
    """When the middleware is made."""
    app = starlette("nothing")
    with pytest.raises(ValueError, match=next(iter(options))):
        ReadOwnWrites(app, **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        aiohttp_side.read_own_writes(**options)
    with pytest.raises(TypeError, match="cluster"):
        ReadOwnWrites(app, 5)  # type: ignore[arg-type]


async def test_fastapi_has_dependencies_for_both_sides(pair: Pair, notes: str) -> None:
    """The cluster opens and closes with the app."""
    app = FastAPI(lifespan=lifespan(cluster=lambda: Cluster(pair.hosts, min_size=1)))
    app.add_middleware(TransactionPerRequest, "cluster")
    app.add_middleware(ReadOwnWrites)
    count = f"SELECT count(*) FROM {notes}"

    @app.post("/block")
    async def block(conn: WriteConnection) -> str:
        await conn.execute(f"INSERT INTO {notes} VALUES (1)")
        return "ok"

    @app.post("/transaction")
    async def transaction(conn: WriteTransaction) -> str:
        await conn.execute(f"INSERT INTO {notes} VALUES (1)")
        return "ok"

    @app.get("/read")
    async def read(conn: ReadConnection) -> Any:
        row = await (await conn.execute(count)).fetchone()
        return row and row[0]

    @app.post("/request")
    async def by_request(conn: RequestTransactionOfCluster) -> str:
        await conn.execute(f"INSERT INTO {notes} VALUES (1)")
        return "ok"

    @app.get("/standby")
    async def standby(kept: ClusterDep) -> Any:
        return await kept.read.fetchval("SELECT pg_is_in_recovery()")

    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.cluster.wait()
        for number, path in enumerate(["/block", "/transaction", "/request"] * 3, 1):
            answer = await client.post(path)
            assert "set-cookie" in answer.headers
            assert (await client.get("/read")).json() == number
        client.cookies.clear()
        assert (await client.get("/standby")).json() in (True, False)
    assert app.state._state == {}


def test_a_lifespan_keeps_pools_and_clusters() -> None:
    """At least one of them."""
    with pytest.raises(TypeError, match="pool must be an AsyncConnectionPool"):
        lifespan()
    with pytest.raises(TypeError, match="pool must be an AsyncConnectionPool"):
        lifespan(Cluster(open=False))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cluster must be an AsyncConnectionPool or a Cluster"):
        lifespan(cluster=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cluster must be a Cluster"):
        aiohttp_side.cluster_context(5)  # type: ignore[arg-type]


# aiohttp


def aiohttp_app(pair: Pair, notes: str, **options: Any) -> web.Application:
    """An app that writes and reads."""
    count = f"SELECT count(*) FROM {notes}"
    per_request = aiohttp_side.transaction_per_request(aiohttp_side.CLUSTER)
    app = web.Application(middlewares=[aiohttp_side.read_own_writes(**options), per_request])
    make = lambda: Cluster(pair.hosts, min_size=1, token_wait=0.01)  # noqa: E731
    app.cleanup_ctx.append(aiohttp_side.cluster_context(make, wait=True))

    async def write(request: web.Request) -> web.StreamResponse:
        conn = await aiohttp_side.transaction(request, aiohttp_side.CLUSTER)
        await conn.execute(f"INSERT INTO {notes} VALUES (1)")
        if "redirect" in request.query:
            raise web.HTTPSeeOther("/read")
        if "stream" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"0")
            return response
        return web.json_response(0)

    async def read(request: web.Request) -> web.StreamResponse:
        return web.json_response(await request.app[aiohttp_side.CLUSTER].read.fetchval(count))

    app.add_routes([web.post("/write", write), web.get("/read", read)])
    app.add_routes([web.get("/ready", aiohttp_side.ready(aiohttp_side.CLUSTER))])
    return app


async def test_a_user_of_aiohttp_reads_what_the_user_has_written(pair: Pair, notes: str) -> None:
    """Where the handler answers by an exception too; not where it has prepared the response."""
    app = aiohttp_app(pair, notes, header="X-Token")
    async with TestClient(TestServer(app)) as client:
        with pair.paused():

            async def get(**headers: str) -> Any:
                async with client.get("/read", headers=headers) as answer:
                    assert "Set-Cookie" not in answer.headers
                    return await answer.json()

            assert await get() == 0
            async with client.post("/write", allow_redirects=False) as answer:
                header = answer.headers["Set-Cookie"]
                assert header.startswith(f"{COOKIE}=")
                assert header.endswith("; Path=/; Max-Age=3600; HttpOnly; SameSite=lax")
                token = answer.headers["X-Token"]
            client.session.cookie_jar.clear()
            assert await get() == 0
            assert await get(**{"X-Token": token}) == 1
            assert await get(**{"X-Token": "no"}) == 0
            assert await get(Cookie=f"a=b; {COOKIE}={token}") == 1
            async with client.post("/write?redirect=", allow_redirects=False) as answer:
                assert answer.status == 303
                token = answer.headers["X-Token"]
            assert await get(Cookie=f'{COOKIE}="{token}"') == 2
            async with client.post("/write?stream=", allow_redirects=False) as answer:
                assert "Set-Cookie" not in answer.headers
            async with client.get("/ready") as answer:
                assert await answer.json() == {"status": "ok"}
