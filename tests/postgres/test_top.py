"""`asyncpool top`, reading a real inspector."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from itertools import cycle
from typing import Any

import pytest
from rich.console import Console

from asyncpool import AsyncConnectionPool
from asyncpool.cli._frame import Frame, _leases, _long_leases
from asyncpool.cli._top import top
from asyncpool.inspector import Inspector
from asyncpool.testing import Server
from tests._tools import few

from ._docs import ROOT
from ._tools import LIMIT, at_rest, eventually, in_time, overloaded
from .test_inspector import served


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncpool.cli", "top", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run(*arguments: str) -> tuple[int | None, str, str]:
    async with started(*arguments) as process:
        out, err = await in_time(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()


@pytest.mark.exhaustive
async def test_top_shows_the_holder_of_each_lease(dsn: str) -> None:
    """`top` prints one snapshot if the output is no terminal; `--json` prints it unchanged."""
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=2, name="shop", leak_timeout=60
    ) as pool:

        async def refund() -> None:
            async with pool.connection() as conn:
                await conn.execute("SELECT 5 AS amount")
                await asyncio.Event().wait()

        holder = asyncio.create_task(refund(), name="POST /refunds")
        await eventually(lambda: any(each.last_sql for each in pool.explain().leases))
        async with served(Inspector(pool, authorize=lambda scope: True)) as url:
            status, out, err = await run(url)
            assert (status, err) == (0, "")
            for part in (
                "shop   OK   1 of 1 to 2",
                "1 in use",
                "POST /refunds",
                "SELECT 5 AS amount",
            ):
                assert part in out
            status, out, err = await run(url, "--once", "--json")
            assert json.loads(out)["pools"][0]["leases"][0]["holder"] == "POST /refunds"
        holder.cancel()
        await asyncio.wait({holder})


@pytest.mark.parametrize("share", few([1.0, 1e-9]), ids=["often", "rarely"])
@pytest.mark.exhaustive
async def test_top_follows_the_feed_until_it_is_interrupted(
    dsn: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each snapshot is a line of JSON; Ctrl-C ends `top` with status 0 and no traceback."""
    monkeypatch.setattr("asyncpool.inspector._feed.SHARE", share)
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        app = Inspector(pool, authorize=lambda scope: True, interval=0.02)
        app._feed._stream_duration = 0.1  # so that `top` must reopen the feed
        async with served(app) as url, started(url, "--json") as process:
            assert process.stdout is not None
            wholes = 0
            while wholes < 2:
                snapshot = json.loads(await in_time(process.stdout.readline(), 60))
                wholes += snapshot["whole"]
            process.send_signal(signal.SIGINT)
            _, err = await in_time(process.communicate(), 60)
            assert (process.returncode, err) == (0, b"")


async def test_top_draws_on_a_terminal(dsn: str) -> None:
    """The display is updated until the app has ended."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        app = Inspector(pool, authorize=lambda scope: True, interval=0.02)
        app._feed._stream_duration = 0.1
        console = Console(force_terminal=True, width=100, height=30, record=True, file=StringIO())
        async with served(app) as url:
            watching = asyncio.create_task(
                asyncio.to_thread(top, url, [], once=False, as_json=False, console=console)
            )
            await asyncio.sleep(0.3)
            assert not watching.done()
        assert await in_time(watching, 30) == 1


async def test_top_says_how_many_processes_have_answered(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows one of them at a time, whichever the server has chosen."""
    pids = cycle([7, 8])
    monkeypatch.setattr(
        "asyncpool.inspector._feed.identity",
        lambda: {"host": "web-1", "pid": next(pids), "uptime": 5.0},
    )
    screen = StringIO()
    console = Console(force_terminal=True, width=100, height=30, file=screen)
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        app = Inspector(pool, authorize=lambda scope: True, interval=0.02)
        app._feed._stream_duration = 0.1
        async with served(app) as url:
            watching = asyncio.create_task(
                asyncio.to_thread(top, url, [], once=False, as_json=False, console=console)
            )
            await eventually(lambda: "one of 2 that have answered" in screen.getvalue())
        assert await in_time(watching, 30) == 1


async def test_q_ends_it_and_what_matters_is_seen_in_80_columns(dsn: str) -> None:
    """The header says how to quit; a lease's holder, place and statement are not cut off."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    shown = bytearray()
    painted = asyncio.Event()
    statement = "SELECT 'a statement of some sixty characters' AS name_of_column"

    def read() -> None:
        try:
            shown.extend(os.read(main, 65536))
        except OSError:  # Linux raises it for a closed terminal
            loop.remove_reader(main)
        if b"second  " in shown:
            painted.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(main, read)
    echo = termios.tcgetattr(terminal)[3] & termios.ECHO
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="first", leak_timeout=60) as pool,
        AsyncConnectionPool(dsn, min_size=1, name="second") as second,
    ):

        async def refund() -> None:
            async with pool.connection() as conn:
                await conn.execute(statement)
                await asyncio.Event().wait()

        holder = asyncio.create_task(refund(), name="POST /orders/4711/refunds")
        await eventually(lambda: any(each.last_sql for each in pool.explain().leases))
        async with served(Inspector([pool, second], authorize=lambda scope: True)) as url:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "asyncpool", "top", url),
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
            )
            try:
                await in_time(painted.wait(), 60)
                assert process.returncode is None
                os.write(main, b"q")
                assert await in_time(process.wait(), 60) == 0
            finally:
                loop.remove_reader(main)
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        holder.cancel()
        await asyncio.wait({holder})
    assert termios.tcgetattr(terminal)[3] & termios.ECHO == echo
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for part in (f"asyncpool top {url}", "1 in use, queue 0", "q quits", "process "):
        assert part in text
    for part in (
        "POST /orders/4711/refunds",
        "test_top.py:",
        " in refund",
        "in refund  in transaction",
        statement,
    ):
        assert part in text
    os.close(main)
    os.close(terminal)


def test_a_long_place_is_shortened_to_its_file_line_and_function() -> None:
    """They tell more than the folders and the outer functions."""
    lease = {
        "age": 12.0,
        "holder": "h" * 60,
        "borrowed_at": f"/{'folder/' * 20}views.py:12 in outer.<locals>.refund",
        "last_sql": f"SELECT {'x' * 200}",
        "transaction": "idle",
    }
    console = Console(width=80, record=True, file=StringIO())
    console.print(_leases([lease], 76))
    lines = console.export_text().splitlines()
    assert [line.strip() for line in lines[:1]] == [f"12 s  {'h' * 60}"]
    assert lines[1].strip() == "views.py:12 in refund  idle"
    assert lines[2].strip().startswith("SELECT xxx")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    few(
        [
            (["postgresql://u:Zqx7w@host/x"], "not an http or https address"),
            (["postgresql://u:Zqx7w@[/x"], "not an http or https address"),
            (["ftp://example.com"], "not an http or https address"),
            (["http://u:Zqx7w@127.0.0.1:1"], "with --header"),
            (["u:Zqx7w/x@127.0.0.1:1"], "***@127.0.0.1"),
            (["http://127.0.0.1:1", "--header", "nonsense"], "NAME: VALUE"),
            (["http://127.0.0.1:1", "--header", "Authorization Zqx7w"], "NAME: VALUE"),
            (["127.0.0.1:1"], "refused"),
        ]
    ),
)
async def test_top_explains_bad_arguments_and_quotes_nothing_of_them(
    arguments: list[str], part: str
) -> None:
    """The error is one line, with status 1."""
    status, out, err = await run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert part in err
    assert "Zqx7w" not in err
    assert err.count("\n") == 1


@pytest.mark.exhaustive
async def test_top_reports_why_it_can_show_nothing(dsn: str) -> None:
    """The error is one line, with status 1."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        def authorize(scope: Any) -> bool:
            return (b"authorization", b"Bearer x:y") in scope["headers"]

        async with served(Inspector(pool, authorize=authorize)) as url:
            status, out, err = await run(url)
            assert (status, out) == (1, "")
            assert "403, not allowed" in err
            status, out, err = await run(url, "--header", "Authorization: Bearer x:y")
            assert (status, err) == (0, "")
            status, out, err = await run(f"{url}/deeper", "--header", "Authorization: Bearer x:y")
            assert (status, out) == (1, "")
            assert "404" in err
            assert err.count("\n") == 1

    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<h1>hello</h1>"})

    async with served(other) as url:
        for more in ((), ("--json",)):
            status, _, err = await run(url, *more)
            assert status == 1
            assert "no inspector" in err


async def test_control_characters_in_names_are_replaced(dsn: str) -> None:
    """A task's or a pool's name cannot control the terminal."""
    async with AsyncConnectionPool(dsn, min_size=1, name="\x1b[2Jshop") as pool:

        async def hold() -> None:
            async with pool.connection():
                await asyncio.Event().wait()

        holder = asyncio.create_task(hold(), name="\x1b]0;owned\x07[red]")
        await eventually(lambda: any("owned" in each.holder for each in pool.explain().leases))
        snapshot = json.loads(await Inspector(pool, authorize=lambda scope: True)._feed.snapshot())
        console = Console(width=120, record=True, file=StringIO())
        console.print(Frame(snapshot))
        text = console.export_text()

        assert "\x1b" not in text
        assert "[red]" in text
        holder.cancel()
        await asyncio.wait({holder})


async def test_a_stopped_server_and_a_full_pool_show_at_a_glance(server: Server, dsn: str) -> None:
    """The badge, the reason and the last error; who has the connections and who waits."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, name="shop", timeout=60) as pool:
        feed = Inspector(pool, authorize=lambda scope: True)._feed

        async def shown() -> str:
            console = Console(width=80, record=True, file=StringIO())
            console.print(Frame(json.loads(await feed.snapshot())))
            return console.export_text()

        async def wait() -> None:
            await pool.release(await pool.acquire())

        conn = await pool.acquire()
        waiter = asyncio.create_task(wait(), name="POST /refunds")
        await eventually(lambda: pool.stats().waiting)
        text = await shown()
        assert "DEGRADED" in text
        assert "queue 1, the first waits for" in text
        assert "POST /refunds" in text
        await server.stop()
        await pool.release(conn)
        await eventually(lambda: pool.explain().last_error)
        async with asyncio.timeout(LIMIT):  # the next check of the health is in a second
            while "DOWN" not in (text := await shown()):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.05)
        assert "last error: " in text
        assert "\ufffd" not in text
        await server.start()
        await in_time(waiter)


async def test_an_overload_is_seen_where_the_queue_is(dsn: str) -> None:
    """How many were refused, how long the others wait, and what `explain()` says of it."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop") as pool:
        feed = Inspector(pool, authorize=lambda scope: True, interval=0.02)._feed
        await feed.snapshot()  # from here on it counts

        async def shown() -> tuple[dict[str, Any], str]:
            console = Console(width=300, record=True, file=StringIO())
            await feed.next()
            snapshot = json.loads(await feed.snapshot())
            console.print(Frame(snapshot))
            return snapshot, console.export_text()

        async with overloaded(pool, refusals=3):
            snapshot, text = await shown()
            assert re.search(
                r"queue \d+, the first waits for .*\n.*"
                r"expected wait \d.* m?s, queue not empty for \d.* m?s,"
                r" 3 refused in the last \d+ s",
                text,
            )
            assert "- 3 of " in text
        await at_rest(pool)
        _, text = await shown()
        assert "queue not empty" not in text
        assert " 3 refused in the last " in text
        # An app with an older version sends nothing of it.
        del snapshot["pools"][0]["overload"], snapshot["pools"][0]["minute"]["requests_refused"]
        for name in ("expected_wait", "standing"):
            del snapshot["pools"][0]["stats"][name]
        console = Console(width=300, record=True, file=StringIO())
        console.print(Frame(snapshot))
        text = console.export_text()
        assert "the first waits for" in text
        assert "queue not empty" not in text
        assert "3 refused" not in text


@pytest.mark.parametrize(
    ("ages", "text"),
    [
        ([9.0], ""),
        ([12.0, 9.0], "1 connection in use for more than 10 s: for 12 s by POST /refunds"),
        (
            [12.0, 11.0],
            "2 connections in use for more than 10 s, the longest for 12 s by POST /refunds",
        ),
    ],
)
def test_connections_in_use_for_long_are_noted(ages: list[float], text: str) -> None:
    """A pool that serves is OK, with a leak or a slow query too."""
    found = [{"age": age, "holder": "POST /refunds"} for age in ages]
    assert _long_leases(found) == ([text] if text else [])


@pytest.mark.parametrize("snapshot", [{"pools": []}])
def test_a_snapshot_without_pools_is_shown(snapshot: dict[str, Any]) -> None:
    """All pools may have been closed."""
    console = Console(width=80, record=True, file=StringIO())
    console.print(Frame(snapshot))
    assert "no pool" in console.export_text()


async def test_what_a_pool_shares_with_others_is_shown(dsn: str) -> None:
    """An app with an older version sends nothing of it."""
    budget = "fleet 'shop': 4 of 8 connections, fair share 4"
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        feed = Inspector(pool, authorize=lambda scope: True)._feed
        snapshot = json.loads(await feed.snapshot())
    for given, expected in ((budget, True), (None, False)):
        snapshot["pools"][0]["budget"] = given
        console = Console(width=200, record=True, file=StringIO())
        console.print(Frame(snapshot))
        assert (f"budget: {budget}" in console.export_text()) is expected
    del snapshot["pools"][0]["budget"]
    Console(file=StringIO()).print(Frame(snapshot))
