"""The inspector over HTTP: its authorization, its content, and its low cost."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
import uvicorn
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from starlette.applications import Starlette
from starlette.routing import Mount

from asyncpool import AsyncConnectionPool
from asyncpool.inspector import Inspector
from asyncpool.inspector.aiohttp import application

from ._docs import ROOT
from ._tools import client_of, eventually, in_time

NOBODY = {"type": "http.disconnect"}


def yes(_: object) -> bool:
    return True


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an app by a real server; yield its address."""
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await in_time(serving)


async def events(client: httpx.AsyncClient, url: str, number: int) -> list[dict[str, Any]]:
    """Read the first events of a stream."""
    found: list[dict[str, Any]] = []
    async with client.stream("GET", url) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):  # not of the event `alive`
                found.append(json.loads(line.removeprefix("data: ")))
                if len(found) == number:
                    break
    return found


@pytest.mark.parametrize("verdict", [False, None, 1, "yes"])
@pytest.mark.parametrize("path", ["/", "/snapshot", "/events", "/page.js", "/nothing"])
async def test_only_true_allows_a_request(dsn: str, verdict: Any, path: str) -> None:
    """A refusal does not even show which paths exist."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        app = Inspector(pool, authorize=lambda scope: verdict)
        async with client_of(app) as client:
            answer = await client.get(path)
            assert (answer.status_code, answer.text) == (403, "forbidden")
        assert app._feed._timer is None


async def test_authorize_may_be_async_and_sees_the_request(dsn: str) -> None:
    """`authorize` gets the request's scope, with the headers."""

    async def authorize(scope: Any) -> bool:
        await asyncio.sleep(0)
        return (b"x-admin", b"1") in scope["headers"]

    async with (
        AsyncConnectionPool(dsn, min_size=1) as pool,
        client_of(Inspector(pool, authorize=authorize)) as client,
    ):
        assert (await client.get("/")).status_code == 403
        assert (await client.get("/", headers={"X-Admin": "1"})).status_code == 200


async def test_all_responses_have_security_headers(dsn: str) -> None:
    """They allow no outside resource, inline script, frame or cache; only GET and HEAD work."""
    async with (
        AsyncConnectionPool(dsn, min_size=1) as pool,
        client_of(Inspector(pool, authorize=yes)) as client,
    ):
        for path, status in (
            ("/", 200),
            ("/page.js", 200),
            ("/page.css", 200),
            ("/snapshot", 200),
            ("/../_app.py", 404),
            ("/page.html", 404),
        ):
            answer = await client.get(path)
            assert answer.status_code == status
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            head = await client.head(path)
            assert (head.status_code, head.content) == (status, b"")
            assert head.headers["content-length"] == answer.headers["content-length"]
        assert (await client.post("/snapshot")).status_code == 405
        page = (await client.get("/")).text + (await client.get("/page.css")).text
        assert "//" not in page.replace("http://www.w3.org", "")
        scripts = ["page", "charts", "leases", "text"]
        for name in scripts:
            answer = await client.get(f"/{name}.js")
            assert answer.headers["content-type"].startswith("text/javascript")
            assert "innerHTML" not in answer.text


@pytest.mark.exhaustive
async def test_a_forgotten_release_is_shown_with_the_line_that_borrowed(dsn: str) -> None:
    """The lease shows its task, its code location and its statement without parameters."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, max_size=2, leak_timeout=60, name="shop") as pool,
        client_of(Inspector(pool, authorize=yes)) as client,
    ):

        async def refund() -> None:
            conn = await pool.acquire()
            await conn.execute("SELECT %s::text", ["a secret"])
            await asyncio.Event().wait()

        task = asyncio.create_task(refund(), name="<script>alert(1)</script>")
        await eventually(
            lambda: [each.transaction for each in pool.explain().leases] == ["in transaction"]
        )
        answer = await client.get("/snapshot")
        assert answer.headers["content-type"] == "application/json"
        (shown,) = answer.json()["pools"]
        (lease,) = shown["leases"]
        assert lease["holder"] == "<script>alert(1)</script>"
        assert "test_inspector.py" in lease["borrowed_at"]
        assert lease["borrowed_at"].endswith("refund")
        assert lease["last_sql"] == "SELECT %s::text"
        assert lease["transaction"] == "in transaction"
        assert "a secret" not in answer.text
        assert shown["connections"][0]["lease"]["stack"] == lease["stack"]
        task.cancel()
        await asyncio.wait({task})


async def test_a_stream_has_the_timeline_first_and_then_new_samples(dsn: str) -> None:
    """Each tick sends one snapshot, also if the app is mounted at another path."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="one") as one,
        AsyncConnectionPool(dsn, min_size=2, name="two") as two,
    ):
        await two.wait()
        inspector = Inspector([one, two], authorize=yes, interval=0.02)
        app = Starlette(routes=[Mount("/deep/down", inspector)])
        async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/deep/down/")).status_code == 200
            first, second, third = await events(client, "/deep/down/events", 3)
            assert (first["whole"], second["whole"], third["whole"]) == (True, False, False)
            assert [pool["name"] for pool in third["pools"]] == ["one", "two"]
            assert third["pools"][1]["stats"]["size"] == 2
            times = [each["pools"][0]["timeline"][-1][0] for each in (first, second, third)]
            assert times == sorted(times)
            assert len(third["pools"][0]["timeline"]) == 1
            again = (await events(client, "/deep/down/events", 1))[0]
            assert len(again["pools"][0]["timeline"]) >= 3


async def test_many_readers_share_one_snapshot(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has disconnected leaves no task behind."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        made = 0
        explain = pool.explain

        def counted() -> Any:
            nonlocal made
            made += 1
            return explain()

        monkeypatch.setattr(pool, "explain", counted)
        app = Inspector(pool, authorize=yes, interval=0.2)
        async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
            await asyncio.gather(*(events(client, "/events", 2) for _ in range(20)))
            assert made <= 6
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    await eventually(lambda: all(task.done() for task in tasks))


async def test_a_stream_ends_by_itself_so_that_a_server_can_stop(dsn: str) -> None:
    """A stream ends after `stream_duration`, and when its pool closes."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        app = Inspector(pool, authorize=yes, interval=0.02)
        app._feed._stream_duration = 0.1
        async with client_of(app) as client:
            assert "data: " in (await in_time(client.get("/events"))).text
        app._feed._stream_duration = 600
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/events", "headers": []}
        watching = asyncio.create_task(app(scope, asyncio.Event().wait, send))
        # The start of the response, and three events: the stream goes on from tick to tick.
        await eventually(lambda: len(sent) >= 4)
        await pool.close()
        await in_time(watching)
        assert all(b"data: " in each["body"] for each in sent[1:-1])
        assert not sent[-1].get("more_body")
    assert app._feed._timer is None
    async with client_of(app) as client:
        (shown,) = (await client.get("/snapshot")).json()["pools"]
        assert shown["stats"]["size"] == 0


async def test_the_stream_of_a_disconnected_reader_ends(dsn: str) -> None:
    """The stream ends before the next tick."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        app = Inspector(pool, authorize=yes, interval=60)
        sent: list[Any] = []
        gone = asyncio.Event()

        async def receive() -> Any:
            await gone.wait()
            return NOBODY

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/events", "headers": []}
        watching = asyncio.create_task(app(scope, receive, send))
        await eventually(lambda: len(sent) == 2)
        gone.set()
        await in_time(watching)
        again = asyncio.create_task(app(scope, asyncio.Event().wait, send))
        await asyncio.sleep(0)
        again.cancel()
        await asyncio.wait({again})
        assert again.cancelled()


async def test_an_inspector_keeps_no_pool_alive(dsn: str) -> None:
    """Its timer does not keep the inspector alive either."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    app = Inspector(pool, authorize=yes, interval=0.02)
    async with pool, client_of(app) as client:
        await client.get("/snapshot")
    while app._feed._timer is not None:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.01)
    seen, feed = weakref.ref(pool), weakref.ref(app._feed)
    del pool
    gc.collect()
    assert seen() is None
    async with client_of(app) as client:
        assert (await client.get("/snapshot")).json()["pools"] == []
    del app, client
    gc.collect()
    assert feed() is None


async def test_the_feed_has_ten_minutes(dsn: str) -> None:
    """Older samples are dropped."""
    async with AsyncConnectionPool(dsn, min_size=1, name="old") as pool:
        feed = Inspector(pool, authorize=yes)._feed
        feed.start()
        for _ in range(700):
            feed._sample()
        assert len(feed._timelines["old"]) == 600


async def test_an_inspector_answers_its_framework(dsn: str) -> None:
    """The inspector supports the lifespan protocol, and closes each web socket."""
    pool = AsyncConnectionPool(dsn, open=False)
    app = Inspector(pool, authorize=yes)
    sent_types: list[str] = []
    incoming = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(incoming, "websocket.connect")}

    async def send(message: Any) -> None:
        sent_types.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    await app({"type": "websocket", "path": "/"}, receive, send)
    assert sent_types == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
        "websocket.close",
    ]
    async with client_of(app) as client:
        (shown,) = (await client.get("/snapshot")).json()["pools"]
        assert "not open yet" in shown["doing"]


def test_bad_arguments_are_refused() -> None:
    """The errors are raised at the call."""
    pool, other = (AsyncConnectionPool(open=False, name="same") for _ in range(2))
    with pytest.raises(TypeError, match="authorize"):
        Inspector(pool, authorize=None)
    with pytest.raises(TypeError, match="one AsyncConnectionPool or Cluster, or several"):
        Inspector([], authorize=yes)
    with pytest.raises(TypeError, match="one AsyncConnectionPool or Cluster, or several"):
        Inspector(3, authorize=yes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give each a name="):
        Inspector([pool, other], authorize=yes)
    with pytest.raises(ValueError, match="interval"):
        Inspector(pool, authorize=yes, interval=0)
    with pytest.raises(ValueError, match="interval"):
        application(pool, authorize=yes, interval=-1)
    with pytest.raises(TypeError, match="authorize"):
        application(pool, authorize="me")  # type: ignore[arg-type]


async def test_in_aiohttp_it_is_an_application_to_add(dsn: str) -> None:
    """The application has the same page, feed, headers and authorization."""
    async with AsyncConnectionPool(dsn, min_size=1, name="here") as pool:

        async def authorize(request: web.Request) -> bool:
            return request.headers.get("X-Admin") == "1"

        app = web.Application()
        app.add_subapp("/pool/", application(pool, authorize=authorize, interval=0.02))
        server = TestServer(app)
        await server.start_server()
        try:
            async with ClientSession(server.make_url("/")) as client:
                async with client.get("/pool/") as answer:
                    assert (answer.status, await answer.text()) == (403, "forbidden")
                client.headers["X-Admin"] = "1"
                for path, status in (("/", 200), ("/page.js", 200), ("/x", 404)):
                    async with client.get(f"/pool{path}") as answer:
                        assert answer.status == status
                        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                async with client.get("/pool/snapshot") as answer:
                    assert (await answer.json())["pools"][0]["name"] == "here"
                async with client.post("/pool/snapshot") as answer:
                    assert answer.status == 405
                async with client.get("/pool/events") as answer:
                    assert answer.headers["Content-Type"] == "text/event-stream"
                    found = 0
                    async for row in answer.content:
                        found += row.startswith(b"data: ")
                        if found == 3:
                            break
        finally:
            await server.close()


def test_the_page_is_in_the_wheel(tmp_path: Any) -> None:
    """The page's files are not Python modules, so the build must include them."""
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    builder = hatchling.WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = ["page.html", "page.css", "page.js", "charts.js", "leases.js", "text.js"]
    assert {f"asyncpool/inspector/{name}" for name in files} <= names
