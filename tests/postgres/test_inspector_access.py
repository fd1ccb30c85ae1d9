"""Who may see the inspector, and which pools it shows."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from starlette.responses import RedirectResponse, Response

from asyncpool import AsyncConnectionPool, PoolManager
from asyncpool.inspector import Inspector
from asyncpool.inspector.aiohttp import application

from ._docs import ROOT
from ._tools import client_of

USER, PASSWORD = "ops", "correct: hörse"

Make = Callable[..., Any]
Serve = Callable[[Any], Any]


@asynccontextmanager
async def by_aiohttp(app: web.Application) -> AsyncIterator[httpx.AsyncClient]:
    server = TestServer(app)
    await server.start_server()
    try:
        async with httpx.AsyncClient(base_url=str(server.make_url("/"))) as client:
            yield client
    finally:
        await server.close()


each_framework = pytest.mark.parametrize(
    ("make", "serve"), [(Inspector, client_of), (application, by_aiohttp)], ids=["asgi", "aiohttp"]
)


def basic(text: bytes) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text).decode()}


@each_framework
async def test_basic_auth_asks_for_the_password(dsn: str, make: Make, serve: Serve) -> None:
    """A request without the right user and password gets 401 and the challenge, for each path."""
    right = f"{USER}:{PASSWORD}".encode()
    async with (
        AsyncConnectionPool(dsn, min_size=1) as pool,
        serve(make(pool, basic_auth=(USER, PASSWORD))) as client,
    ):
        for headers in (
            {},
            {"Authorization": "Basic"},
            {"Authorization": "Basic ???"},
            {"Authorization": "Basic é".encode("latin-1")},
            {"Authorization": f"Bearer {base64.b64encode(right).decode()}"},
            basic(right + b"x"),
            basic(right[:-1]),
            basic(b":" + PASSWORD.encode()),
            basic(USER.encode() + b":"),
            basic(b"\xff\xfe"),
        ):
            for path in ("/", "/snapshot", "/events", "/server", "/nothing"):
                answer = await client.get(path, headers=headers)
                assert (answer.status_code, answer.text) == (401, "unauthorized")
                challenge = answer.headers["www-authenticate"]
                assert challenge.startswith("Basic realm=")
                assert "default-src 'none'" in answer.headers["content-security-policy"]
        allowed = await client.get("/snapshot", headers=basic(right))
        assert allowed.status_code == 200
        lower = {"authorization": basic(right)["Authorization"].replace("Basic", "basic")}
        assert (await client.get("/", headers=lower)).status_code == 200


async def test_the_password_is_in_no_repr_and_in_no_error() -> None:
    """The inspector keeps a digest of it."""
    pool = AsyncConnectionPool(open=False)
    app = Inspector(pool, basic_auth=(USER, PASSWORD))
    assert app._basic_auth is not None
    assert PASSWORD not in repr(vars(app)) + repr(vars(app._basic_auth))
    with pytest.raises(TypeError) as caught:
        Inspector(pool, basic_auth=PASSWORD)  # type: ignore[arg-type]
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("make", [Inspector, application])
def test_wrong_credentials_are_refused(make: Make) -> None:
    """An empty password is an error at the call, such as from a variable that is not set."""
    pool = AsyncConnectionPool(open=False)
    with pytest.raises(ValueError, match="password of basic_auth is empty"):
        make(pool, basic_auth=(USER, ""))
    with pytest.raises(ValueError, match="user of basic_auth"):
        make(pool, basic_auth=("", PASSWORD))
    with pytest.raises(ValueError, match="user of basic_auth"):
        make(pool, basic_auth=("a:b", PASSWORD))
    for wrong in ((USER, None), (USER,), 3):
        with pytest.raises(TypeError, match="basic_auth must be a pair"):
            make(pool, basic_auth=wrong)
    with pytest.raises(TypeError, match="either authorize or basic_auth: got neither"):
        make(pool)
    with pytest.raises(TypeError, match="either authorize or basic_auth: got both"):
        make(pool, authorize=bool, basic_auth=(USER, PASSWORD))


async def test_authorize_may_answer_by_itself(dsn: str) -> None:
    """A response that it returns is sent, such as a challenge or a redirect to a login page."""

    async def authorize(scope: Any) -> bool | Response:
        if (b"x-user", b"me") in scope["headers"]:
            return True
        if scope["path"] == "/events":
            return Response("who?", 401, {"WWW-Authenticate": "Bearer"})
        return RedirectResponse("/login")

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        app = Inspector(pool, authorize=authorize)
        async with client_of(app) as client:
            answer = await client.get("/")
            assert (answer.status_code, answer.headers["location"]) == (307, "/login")
            answer = await client.get("/events")
            assert (answer.status_code, answer.text) == (401, "who?")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert app._feed._timer is None
            assert (await client.get("/", headers={"X-User": "me"})).status_code == 200


async def test_authorize_may_answer_by_itself_in_aiohttp(dsn: str) -> None:
    """It may return a response, or return or raise one of aiohttp's exceptions."""

    async def authorize(request: web.Request) -> bool | web.StreamResponse:
        if request.path == "/page.js":
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        if request.path == "/page.css":
            return web.HTTPFound("/login")
        if request.path == "/":
            raise web.HTTPFound("/login")
        return True

    async with (
        AsyncConnectionPool(dsn, min_size=1) as pool,
        by_aiohttp(application(pool, authorize=authorize)) as client,
    ):
        assert (await client.get("/page.js")).headers["www-authenticate"] == "Bearer"
        for path in ("/page.css", "/"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (302, "/login")
        assert (await client.get("/snapshot")).status_code == 200


@each_framework
async def test_pools_may_come_from_a_callable(dsn: str, make: Make, serve: Serve) -> None:
    """It is called for each snapshot, so pools that are made later are shown too."""
    pools: list[AsyncConnectionPool] = []
    async with (
        serve(make(lambda: pools, basic_auth=(USER, PASSWORD))) as client,
        AsyncConnectionPool(dsn, min_size=1, name="one") as one,
        AsyncConnectionPool(dsn, min_size=1, name="one") as namesake,
    ):
        client.headers.update(basic(f"{USER}:{PASSWORD}".encode()))
        assert (await client.get("/snapshot")).json()["pools"] == []
        pools += [one, namesake]
        shown = (await client.get("/snapshot")).json()["pools"]
        assert [each["name"] for each in shown] == ["one", "one (2)"]


async def test_the_pools_of_a_manager_are_shown_as_they_are_made(dsn: str) -> None:
    """A manager iterates over its pools, so it is enough to return it."""
    async with PoolManager(max_connections=2) as manager:
        app = Inspector(lambda: manager, authorize=lambda scope: True)
        async with client_of(app) as client:
            assert (await client.get("/snapshot")).json()["pools"] == []
            await manager.pool(dsn).execute("SELECT 1")
            (shown,) = (await client.get("/snapshot")).json()["pools"]
            assert shown["stats"]["size"] == 1


async def test_a_callable_that_fails_fails_the_request_and_not_the_timer(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that reads the state of an app that has ended."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        state = {"pool": pool}
        app = Inspector(lambda: state["pool"], authorize=lambda scope: True, interval=0.01)
        async with client_of(app) as client:
            assert (await client.get("/snapshot")).status_code == 200
            state.clear()
            assert not await app._feed.next()
            with pytest.raises(KeyError):
                await client.get("/snapshot")
    assert not [each for each in caplog.records if each.name == "asyncio"]


async def test_a_callable_that_returns_no_pool_is_an_error() -> None:
    """The error names what it returned."""
    app = Inspector(lambda: "pool", authorize=lambda scope: True)  # type: ignore[arg-type,return-value]
    async with client_of(app) as client:
        with pytest.raises(TypeError, match="got 'pool'"):
            await client.get("/snapshot")


async def test_the_documented_example_works_as_it_stands(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block of the page is a complete app that shows its pool to the user it names."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    text = (ROOT / "docs" / "inspector.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)  # noqa: S102 - our own documentation
    app = names["app"]
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.pool.wait()
        assert (await client.get("/pool/")).status_code == 401
        client.headers.update(basic(f"ops:{names['PASSWORD']}".encode()))
        assert "<title>" in (await client.get("/pool/")).text
        (shown,) = (await client.get("/pool/snapshot")).json()["pools"]
        assert (shown["name"], shown["health"]["status"]) == ("orders", "ok")
