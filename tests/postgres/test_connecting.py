"""`Connection.connect` connects as psycopg's does, with its attempts, limits and errors."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

import anyio
import psycopg
import pytest
import wrapt
from psycopg.conninfo import make_conninfo
from psycopg.waiting import Ready, Wait

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, Connection
from asyncpool._psycopg import connecting
from tests._tools import few

from ._tools import BOTH_LOOPS, Backends, Proxy, eventually, in_time, run_script

KINDS: list[type[psycopg.AsyncConnection[Any]]] = [psycopg.AsyncConnection, Connection]
LOOPS = BOTH_LOOPS


async def error_of(kind: type[psycopg.AsyncConnection[Any]], *args: Any, **kwargs: Any) -> Any:
    """What a connect that fails says."""
    with pytest.raises(psycopg.Error) as caught:
        await in_time(kind.connect(*args, **kwargs))
    return type(caught.value), str(caught.value), type(caught.value.__cause__)


@pytest.mark.parametrize(
    "options",
    [
        {"port": 1},
        {"host": "127.0.0.1,127.0.0.1", "port": "1,2"},
        {"host": "no.such.host.invalid"},
        {"host": "/no/such/folder"},
        {"dbname": "no_such_database"},
        {"user": "nobody", "password": "wrong"},
        {"target_session_attrs": "standby"},
        {"no_such_option": 1},
        {"port": "x"},
        {"dbname": ["a"]},
    ],
    ids=str,
)
async def test_its_errors_are_psycopgs(dsn: str, options: dict[str, Any]) -> None:
    """For one address and for several."""
    theirs, ours = [await error_of(kind, dsn, **options) for kind in KINDS]
    assert theirs == ours


async def test_the_next_address_is_tried(dsn: str, backends: Backends) -> None:
    """Where the first one refuses."""
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    several = make_conninfo(dsn, host=f"127.0.0.1,{info['host']}", port=f"1,{info['port']}")
    async with await Connection.connect(several) as conn:
        assert conn.info.backend_pid in backends.pids()


@pytest.mark.parametrize("kind", few([Connection, psycopg.AsyncConnection]))
async def test_a_silent_server_costs_the_time_limit(
    dsn: str, kind: type[psycopg.AsyncConnection[Any]]
) -> None:
    """The limit is that of each address."""
    async with Proxy(dsn) as proxy:
        proxy.hung = 1
        began = asyncio.get_running_loop().time()
        found = await error_of(kind, proxy.dsn, connect_timeout=2)
        assert found[:2] == (psycopg.errors.ConnectionTimeout, "connection timeout expired")
        assert asyncio.get_running_loop().time() - began >= 1.9


async def test_a_server_that_hangs_up_meanwhile_is_psycopgs_error(dsn: str) -> None:
    """It has accepted, and says nothing."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        theirs, ours = [await error_of(kind, dsn, port=port) for kind in KINDS]
        assert theirs == ours


async def connect_within(seconds: float, dsn: str, *, scoped: bool) -> None:
    """Connect and close, by an anyio scope or by asyncio's means."""
    if scoped:
        with anyio.fail_after(seconds):
            await (await Connection.connect(dsn)).close()
    else:
        async with asyncio.timeout(seconds):
            await (await Connection.connect(dsn)).close()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No run of the garbage collector."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("scoped", few([False, True]))
@pytest.mark.usefixtures("uncollected")
async def test_a_connect_that_is_cancelled_leaves_nothing(dsn: str, scoped: bool) -> None:
    """Whatever the server has answered by then, its socket is closed at once.

    So it must not be left to the garbage collector: anyio's scope is in a cycle with the error.
    """
    cancelled = 0
    async with Proxy(dsn) as proxy:
        for step in range(20):
            try:
                await connect_within(step * 0.0005, proxy.dsn, scoped=scoped)
            except TimeoutError:
                cancelled += 1
            await eventually(lambda: not proxy._writers)
    assert cancelled


@pytest.mark.parametrize("turns", range(5))
async def test_a_proxy_ends_whose_last_client_stays(dsn: str, turns: int) -> None:
    """Whatever has been done of the client's accept by then."""
    async with Proxy(dsn) as proxy:
        info = psycopg.conninfo.conninfo_to_dict(proxy.dsn)
        client = socket.create_connection((str(info["host"]), int(str(info["port"]))))
        for _ in range(turns):
            await asyncio.sleep(0)
    client.close()


async def test_what_changes_is_not_taken_from_what_was_kept(dsn: str) -> None:
    """Equal values of another type are other values."""
    for options in (
        {"application_name": "a"},
        {"application_name": "b"},
        {"application_name": 1},
        {"application_name": True},
        {"application_name": None},
    ):
        theirs, ours = [await kind.connect(dsn, **options) for kind in KINDS]
        async with theirs, ours:
            assert theirs.info.get_parameters() == ours.info.get_parameters()


Patch = Callable[[Callable[..., Any], list[str]], Any]


def with_wrapt(found: Callable[..., Any], calls: list[str]) -> Any:
    """As OpenTelemetry does."""

    async def traced(wrapped: Any, _: Any, args: Any, kwargs: Any) -> Any:
        calls.append("wrapt")
        return await wrapped(*args, **kwargs)

    return wrapt.FunctionWrapper(vars(psycopg.AsyncConnection)["connect"], traced)


def by_hand(found: Callable[..., Any], calls: list[str]) -> Any:
    """As others do."""

    async def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append("hand")
        return await found.__func__(cls, *args, **kwargs)  # type: ignore[attr-defined]

    return classmethod(connect)


@pytest.mark.parametrize("patch", [with_wrapt, by_hand])
async def test_a_patch_of_psycopgs_connect_is_called(
    dsn: str, patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracers patch it."""
    calls: list[str] = []
    patched = patch(psycopg.AsyncConnection.connect, calls)
    monkeypatch.setattr(psycopg.AsyncConnection, "connect", patched)
    async with await Connection.connect(dsn) as conn:
        await conn.execute("SELECT 1")
    assert len(calls) == 1


async def test_the_text_of_a_value_is_asked_for_each_time(dsn: str) -> None:
    """It may be a password that changes."""

    class Changing:
        times = 0

        def __str__(self) -> str:
            self.times += 1
            return f"text {self.times}"

    name: Any = Changing()
    async with AsyncNullConnectionPool(dsn, kwargs={"application_name": name}) as pool:
        seen = [await pool.fetchval("SHOW application_name") for _ in range(3)]
    assert len(set(seen)) == 3


async def test_the_parameters_of_another_class_are_asked_for(dsn: str) -> None:
    """psycopg asks a class method for them, which may be overridden beside this class."""

    class Named(psycopg.AsyncConnection[Any]):
        @classmethod
        async def _get_connection_params(cls, conninfo: str, **kwargs: Any) -> Any:
            found = await super()._get_connection_params(conninfo, **kwargs)
            return found | {"application_name": "named"}

    class Mine(Connection[Any], Named):
        pass

    async with await Mine.connect(dsn) as conn:
        assert conn.info.get_parameters()["application_name"] == "named"


@pytest.mark.parametrize("replaced", ["staticmethod(connect)", "functools.partial(connect)"])
async def test_another_connect_was_put_in_psycopgs_place_before(dsn: str, replaced: str) -> None:
    """As a test of an application may do; it is called as it is."""
    script = """
import asyncio, functools, sys, psycopg
connect = psycopg.AsyncConnection.connect
psycopg.AsyncConnection.connect = %s
from asyncpool import Connection
async def main():
    conn = await Connection.connect(sys.argv[1])
    print(type(conn).__module__)
    await conn.close()
asyncio.run(main())
"""
    assert (await run_script(script % replaced, dsn)).startswith("psycopg")


async def test_a_function_of_psycopgs_that_differs_is_called_as_it_is(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a psycopg before 3.3.6, whose wait takes no time limit."""

    async def connect() -> None:
        """It uses no name that is replaced."""

    assert connecting._copy_of(connect) is None
    monkeypatch.setattr(connecting, "COPY", None)
    async with await Connection.connect(dsn) as conn:
        await conn.execute("SELECT 1")


@pytest.mark.skipif(connecting.COPY is None, reason="psycopg's own wait leaves a task behind")
def test_a_connect_that_outlives_its_event_loop_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pool ends it when it is opened on the next event loop."""
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        conninfo = f"host=127.0.0.1 port={silent.getsockname()[1]} user=a dbname=a"
        pool = AsyncConnectionPool(conninfo, min_size=1)

        async def begin() -> None:
            await pool.open()
            await asyncio.sleep(0.1)

        async def again() -> None:
            await pool.open()
            await pool.close()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()
        asyncio.run(again())
    said = [each.getMessage() for each in caplog.records]
    assert any("was not closed before its event loop ended" in each for each in said)
    assert not any("cannot connect" in each for each in said)


def steps(fileno: int) -> Generator[tuple[int, Wait], Ready | int, Ready | int]:
    """The start of a connect, as libpq waits for the end of the TCP handshake."""
    while not (ready := (yield fileno, Wait.W)):
        pass
    return ready


@pytest.mark.skipif(connecting.COPY is None, reason="psycopg's own wait is used")
async def test_only_a_socket_that_takes_no_data_is_waited_for() -> None:
    """A turn of the event loop costs more than to ask for the socket's state."""
    ours, others = socket.socketpair()
    with ours, others:
        ours.setblocking(False)
        with pytest.raises(StopIteration, match=str(int(Ready.W))):
            connecting.wait_until_connected(steps(ours.fileno()), timeout=1).send(None)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        with pytest.raises(psycopg.errors._WaitTimeout):
            await connecting.wait_until_connected(steps(ours.fileno()), timeout=0.01)
        waiting = asyncio.create_task(
            connecting.wait_until_connected(steps(ours.fileno()), timeout=60)
        )
        await asyncio.sleep(0.01)
        assert not waiting.done()
        others.setblocking(False)
        while not waiting.done():
            with suppress(BlockingIOError):
                others.recv(65536)
            await asyncio.sleep(0)
        assert await waiting == Ready.W
