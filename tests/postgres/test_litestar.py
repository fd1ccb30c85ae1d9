"""The pool in Litestar: which requests are committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest

pytest.importorskip("litestar")

from litestar import Litestar, Response, get
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.params import FromQuery

from asyncpool import AsyncConnectionPool, PoolTimeout
from asyncpool.integrations.litestar import (
    ConnectionDep,
    PoolPlugin,
    TransactionPerRequest,
    health_handler,
    readiness_handler,
)
from asyncpool.testing import Server

from ._tools import Backends, at_rest, client_of, eventually


def then(status: int) -> Response[dict[str, int]]:
    """Answer with a status; raise if it is negative."""
    if status < -600:
        raise ValueError("no such colour")
    if status < 0:
        raise HTTPException(status_code=-status)
    return Response({"status": status}, status_code=status)


def make_app(dsn: str, table: str, *more: Any, **options: Any) -> Litestar:
    """An app with a handler for each dependency."""
    insert = f"INSERT INTO {table} VALUES (%s)"

    @get("/connection")
    async def of_connection(
        x: FromQuery[int], status: FromQuery[int], connection: ConnectionDep
    ) -> Response[Any]:
        await connection.execute(insert, [x])
        return then(status)

    @get("/transaction")
    async def of_transaction(
        x: FromQuery[int], status: FromQuery[int], transaction: ConnectionDep
    ) -> Response[Any]:
        await transaction.execute(insert, [x])
        return then(status)

    @get("/request")
    async def of_request(
        x: FromQuery[int], status: FromQuery[int], request_transaction: ConnectionDep
    ) -> Response[Any]:
        await request_transaction.execute(insert, [x])
        return then(status)

    @get("/both")
    async def both(connection: ConnectionDep, other_connection: ConnectionDep) -> list[str]:
        cursors = [
            await each.execute("SHOW transaction_read_only")
            for each in (connection, other_connection)
        ]
        return [(await cursor.fetchone() or ("",))[0] for cursor in cursors]

    return Litestar(
        [of_connection, of_transaction, of_request, both, *more],
        plugins=[
            PoolPlugin(lambda: AsyncConnectionPool(dsn, min_size=1), retry_after=7),
            PoolPlugin(
                lambda: AsyncConnectionPool(
                    dsn, min_size=1, kwargs={"options": "-c default_transaction_read_only=on"}
                ),
                "other",
                wait=True,
            ),
        ],
        middleware=[DefineMiddleware(TransactionPerRequest, **options)],
        openapi_config=None,
    )


@asynccontextmanager
async def serve(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an app whose lifespan has begun."""
    async with (
        app.lifespan(),
        client_of(app, raising=False) as client,
    ):
        yield client


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/request"])
async def test_a_dependency_commits_before_the_response_and_rolls_back_with_an_exception(
    dsn: str, table: str, backends: Backends, path: str
) -> None:
    """The plugin's blocks roll back on an HTTPException; the request's on a status."""
    app = make_app(dsn, table)
    async with serve(app) as client:
        for x, status in enumerate([200, 404, 500, -404, -500, -999]):
            response = await client.get(f"{path}?x={x}&status={status}")
            assert response.status_code == min(abs(status), 500)
            await at_rest(app.state.pool)
    assert backends.rows(table) == ([0, 1, 3] if path == "/request" else [0, 1, 2])


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/request"])
async def test_the_commit_of_a_dependency_comes_before_the_first_byte(
    dsn: str, table: str, backends: Backends, path: str
) -> None:
    """A client with the response sees the row, and the connection is idle."""
    app = make_app(dsn, table)
    seen: list[tuple[str, list[Any], int]] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        seen.append((message["type"], backends.rows(table), app.state.pool.stats().leased))

    query = b"x=1&status=200"
    scope: Any = {"type": "http", "method": "GET", "path": path, "query_string": query}
    scope |= {"headers": [], "root_path": "", "scheme": "http"}
    async with app.lifespan():
        await app(scope, receive, send)
    assert {each[1:] for each in [(kind, *rows, leased) for kind, rows, leased in seen]} == {(1, 0)}
    assert seen[0][0] == "http.response.start"


@pytest.mark.parametrize(("lowest", "kept"), [(400, [200]), (600, [200, 404, 500])])
async def test_the_lowest_status_that_rolls_back_is_a_choice(
    dsn: str, table: str, backends: Backends, lowest: int, kept: list[int]
) -> None:
    """With 400 client errors roll back too; with 600 only unhandled exceptions do."""
    async with serve(make_app(dsn, table, roll_back_from=lowest)) as client:
        for status in (200, 404, 500):
            await client.get(f"/request?x={status}&status={status}")
    assert backends.rows(table) == kept


async def test_several_pools_have_dependencies_each(dsn: str, table: str) -> None:
    """Their names contain the pool's name."""
    async with serve(make_app(dsn, table)) as client:
        assert (await client.get("/both")).json() == ["off", "on"]


async def test_a_dependency_that_fails_leaves_no_connection_leased(dsn: str, table: str) -> None:
    """The order in which dependencies are resolved does not matter."""

    async def fails() -> int:
        await asyncio.sleep(0)
        raise ValueError("no such colour")

    @get("/fails", dependencies={"another": Provide(fails)})
    async def handler(connection: ConnectionDep, another: NamedDependency[int]) -> int:
        return another

    app = make_app(dsn, table, handler)
    async with serve(app) as client:
        for _ in range(3):
            assert (await client.get("/fails")).status_code == 500
            await at_rest(app.state.pool)


async def test_readiness_is_503_while_a_server_is_down_and_health_is_not(
    server: Server, dsn: str, table: str
) -> None:
    """The orchestrator must not kill the process, and must send it no traffic."""
    app = make_app(
        dsn,
        table,
        health_handler(),
        readiness_handler(),
        readiness_handler(
            "/all", "pool", "other", details=lambda r: r.headers.get("x-token") == "secret"
        ),
    )
    async with serve(app) as client:
        await at_rest(app.state.pool)
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ok"})
        assert (await client.get("/all")).json() == {"status": "ok"}
        seen = (await client.get("/all", headers={"x-token": "secret"})).json()["pools"]
        assert seen.keys() == {"pool", "other"}
        assert seen["pool"]["size"] == 1
        await server.stop()
        await eventually(lambda: app.state.pool.stats().idle == 0)
        assert (await client.get("/ready")).status_code == 503
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        await server.start()
        for name in ("pool", "other"):
            await at_rest(app.state[name])
        assert (await client.get("/ready")).status_code == 200


async def test_no_connection_in_time_is_503_with_retry_after(dsn: str, table: str) -> None:
    """The header says when the client may retry."""
    app = make_app(dsn, table, timeout=0.01)
    async with serve(app) as client, app.state.pool.connection():
        response = await client.get("/request?x=1&status=200")
        assert (response.status_code, response.headers["retry-after"]) == (503, "7")


async def test_an_existing_pool_is_used_and_left_open(
    dsn: str, table: str, backends: Backends
) -> None:
    """So a test can replace the app's pool by its own."""
    async with AsyncConnectionPool(dsn, min_size=1) as mine:
        app = make_app("host=nowhere.invalid", table)
        app.state.pool = app.state.other = mine
        async with serve(app) as client:
            assert (await client.get("/connection?x=1&status=200")).status_code == 200
        assert not mine.closed
    assert backends.rows(table) == [1]


def test_what_is_no_pool_is_refused_at_once(asyncpool_dsn: str) -> None:
    """The error is raised when the plugin is made, not when the app starts."""
    with pytest.raises(TypeError, match="pool must be an AsyncConnectionPool"):
        PoolPlugin(asyncpool_dsn)  # type: ignore[arg-type]


async def test_a_start_that_waits_fails_without_the_server(dsn: str) -> None:
    """`wait` keeps an app that cannot serve from starting."""
    nowhere = psycopg.conninfo.make_conninfo(dsn, port="1")
    plugin = PoolPlugin(AsyncConnectionPool(nowhere), wait=True, timeout=0.2)
    with pytest.raises(ExceptionGroup) as caught:
        async with Litestar(plugins=[plugin]).lifespan():
            raise AssertionError
    assert caught.group_contains(PoolTimeout, match="not ready")
