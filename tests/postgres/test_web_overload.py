"""The 503 of each web framework: what it says to the client, and what is in the log."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from asyncpool.integrations import aiohttp, starlette

from ._tools import eventually, in_time
from ._web import each_framework, serve, use


def recorded(
    handler: Callable[[Any], Awaitable[str]], errors: dict[str, Exception]
) -> Callable[[Any], Awaitable[str]]:
    """Return a handler that keeps its error by the id of the request."""

    async def wrapper(request: Any) -> str:
        try:
            return await handler(request)
        except Exception as error:
            errors[request.headers["x-id"]] = error
            raise

    return wrapper


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines about answers in the log."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "asyncpool" and "was answered 503" in record.getMessage()
    ]


@each_framework
@pytest.mark.exhaustive
async def test_an_overloaded_pool_says_when_to_retry(dsn: str, framework: str) -> None:
    """The header follows the error that the request got; a wait that timed out has the default."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=1.5)
    errors: dict[str, Exception] = {}
    async with serve(framework, pool, {"/use": recorded(use(pool), errors)}) as client:
        get = [
            asyncio.create_task(client.get("/use", headers={"x-id": str(each)}))
            for each in range(40)
        ]
        await eventually(lambda: sum(each.done() for each in get) >= 18)
        get += [
            asyncio.create_task(client.get("/use", headers={"x-id": str(each)}))
            for each in range(40, 80)
        ]
        responses = dict(enumerate(await asyncio.gather(*get)))
    busy = {number: each for number, each in responses.items() if each.status_code == 503}
    assert {each.status_code for each in responses.values()} == {200, 503}
    assert {str(number) for number in busy} == errors.keys()
    for number, response in busy.items():
        error = errors[str(number)]
        wanted = error.retry_after if isinstance(error, TooManyRequests) else None
        seconds = max(1, math.ceil(wanted or 0))
        assert response.headers["retry-after"] == str(seconds)
        body = response.json()
        assert (body["detail"], body["retry_after"]) == ("busy, try again", seconds)
    refused = {number for number in busy if isinstance(errors[str(number)], TooManyRequests)}
    assert refused, "the test is about refusals"
    assert min(int(busy[number].headers["retry-after"]) for number in refused) == 2
    assert {busy[number].json()["reason"] for number in refused} == {"deadline"}


@each_framework
@pytest.mark.parametrize(
    ("options", "reason"), [({"max_waiting": 1}, "overload"), ({"timeout": 0.01}, "timeout")]
)
async def test_the_body_has_a_reason_and_nothing_of_the_pool(
    dsn: str, framework: str, options: dict[str, Any], reason: str
) -> None:
    """Names, sizes and addresses are for the log."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, name="secret", **options)
    async with serve(framework, pool, {"/use": use(pool)}, retry_after=7) as client:
        async with pool.connection(10):
            waits = asyncio.create_task(client.get("/use"))
            await eventually(lambda: pool.stats().waiting or waits.done())
            response = await client.get("/use")
        await waits
    assert response.status_code == 503
    assert response.headers["content-type"].startswith("application/json")
    assert response.json() == {"detail": "busy, try again", "reason": reason, "retry_after": 7}


async def test_a_pool_that_cannot_connect_is_a_reason_too(dsn: str) -> None:
    """The pool's own cause, which has addresses in it, is in the log."""
    nowhere = psycopg.conninfo.make_conninfo(dsn, port="1")
    pool = AsyncConnectionPool(nowhere, min_size=1, fail_fast_after=0)
    async with serve("starlette", pool, {"/use": use(pool)}) as client:
        response = await client.get("/use")
    assert (response.status_code, response.json()["reason"]) == (503, "unavailable")


@each_framework
async def test_the_log_has_one_line_about_a_route_at_times(
    dsn: str, framework: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says what the error says; the next one counts the requests that have none."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=0)
    handlers = {"/orders/{id}": use(pool), "/other": use(pool)}
    async with serve(framework, pool, handlers, log_every=1.0) as client, pool.connection(10):
        for number in range(20):
            assert (await client.get(f"/orders/{number}")).status_code == 503
        first = warnings_of(caplog)
        await client.get("/other")
        other = warnings_of(caplog)[len(first) :]
        sent = 20
        while len(found := warnings_of(caplog)) < 3:
            assert sent < 2000, found
            sent += 1
            await client.get(f"/orders/{sent}")
            await asyncio.sleep(0.01)
    assert len(first) == len(other) == 1, "the machine is slow: twenty requests took a second"
    assert re.match(r"GET /orders/{id\S*} \(.*endpoint\) was answered 503: no connection", first[0])
    assert re.match("GET /other .*503: no connection within 0 s .*max_size=1", other[0])
    assert re.search(rf"\({sent - 2} more in the 1 s before\)$", found[2])
    levels = {each.levelno for each in caplog.records if "was answered" in each.getMessage()}
    assert levels == {logging.WARNING}


async def test_a_stream_that_gets_no_connection_is_cut_off(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sees that the response is not whole; it gets no second one inside the first."""
    monkeypatch.setattr(logging.getLogger("aiohttp.server"), "disabled", True)

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one, ")
        await response.write(str(await request.app[aiohttp.POOL].fetchval("SELECT 2")).encode())
        return response

    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=0.01)
    app = web.Application(middlewares=[aiohttp.busy()])
    app.cleanup_ctx.append(aiohttp.pool_context(pool, wait=True))
    app.add_routes([web.get("/", stream)])
    async with TestServer(app) as server, pool.connection():
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        received = await in_time(reader.read())
        writer.close()
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith(b"\r\n\r\n5\r\none, \r\n")


async def test_paths_without_a_route_share_a_line_and_cannot_forge_one(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A client can ask for any number of them, with line breaks in them."""

    @web.middleware
    async def needs_the_pool(request: web.Request, handler: Any) -> web.StreamResponse:
        await request.app[aiohttp.POOL].acquire(timeout=0)
        raise AssertionError

    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    app = web.Application(middlewares=[aiohttp.busy(), needs_the_pool])
    app.cleanup_ctx.append(aiohttp.pool_context(pool))
    async with TestClient(TestServer(app)) as client, pool.connection(10):
        for number in range(5):
            response = await client.get(f"/{number}%0AERROR:root:forged")
            assert response.status == 503
    (line,) = warnings_of(caplog)
    assert line.startswith("GET /0\ufffdERROR:root:forged")
    assert "\n" not in line


@pytest.mark.parametrize("options", [{"retry_after": each} for each in (-1, "1", math.nan, None)])
@pytest.mark.parametrize("busy", [starlette.busy, aiohttp.busy])
def test_what_is_no_number_of_seconds_is_refused(busy: Any, options: dict[str, Any]) -> None:
    """The error is raised when the handlers are made, and shows the value."""
    with pytest.raises(ValueError, match="retry_after must be a number of seconds"):
        busy(**options)


@pytest.mark.parametrize("value", [-1, "1", math.nan])
def test_what_is_no_interval_of_the_log_is_refused(value: Any) -> None:
    """With infinity each route has one line."""
    starlette.busy(log_every=math.inf)
    with pytest.raises(ValueError, match="log_every must be a number of seconds"):
        starlette.busy(log_every=value)


def test_the_errors_of_a_503_are_these() -> None:
    """An error of a query is no reason to try again."""
    assert starlette.busy().keys() == {PoolTimeout, TooManyRequests}
