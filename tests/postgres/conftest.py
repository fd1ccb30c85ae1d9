"""The connection string of one test, watched: whatever a test does, nothing of it may stay."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

import asyncpool
from asyncpool import Connection
from asyncpool.testing import Server, ServerError, postgres

from ._cluster import Servers, servers
from ._sharing import Ledger, created_ledger
from ._tools import Backends, Observer, eventually, psycopg_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from types import ModuleType


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loops on which an asynchronous test runs: its module's `LOOPS`, or asyncio's."""
    loops: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None
    loops = getattr(item.getparent(pytest.Module).obj, "LOOPS", None)  # type: ignore[union-attr]
    return loops or {"asyncio": asyncio.new_event_loop}


SOCKETS = {"test_interrupted", "test_waits"}
"""The modules whose tests on uvloop run by default too: they are about the socket and the loop."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run on asyncio's loop too, when they run on uvloop."""
    for item in items:
        on_uvloop = "uvloop" in re.split(r"\W", item.name.partition("[")[2])
        if on_uvloop and item.path.parent.name == "postgres" and item.path.stem not in SOCKETS:
            item.add_marker("exhaustive")


@pytest.fixture
def application() -> str:
    """The application_name of this test's connections."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def observer(asyncpool_dsn: str) -> Iterator[Observer]:
    """A session for what tests ask the server; a connect for each would take longer."""
    observer = Observer(asyncpool_dsn)
    yield observer
    observer.close()


@pytest.fixture
def backends(
    request: pytest.FixtureRequest, asyncpool_dsn: str, application: str, observer: Observer
) -> Backends:
    """The server's view of this test's connections."""
    if "server" in request.fixturenames:
        observer.close()  # the test may stop the server, which then waits for its sessions to end
        return Backends(asyncpool_dsn, application)
    backends = Backends(asyncpool_dsn, application, observer)
    backends.ask("")  # it is open before the test counts its descriptors
    return backends


@pytest.fixture
async def dsn(
    asyncpool_dsn: str,
    application: str,
    backends: Backends,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[str]:
    """The server, for a test after which no backend, no task and no crash of one may be left."""
    caplog.set_level(logging.INFO)
    yield make_conninfo(asyncpool_dsn, application_name=application)
    if psycopg_version < (3, 3):
        # A wait of psycopg's that is cancelled takes some turns of the loop to end.
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"tasks are left: {others}"
    await eventually(lambda: not backends.pids())
    records = caplog.get_records("call")
    assert [each.getMessage() for each in records if each.levelno >= logging.ERROR] == []


@pytest.fixture(params=[psycopg_pool, asyncpool], ids=["psycopg_pool", "asyncpool"])
def lib(request: pytest.FixtureRequest) -> ModuleType:
    """Of two packages the one whose pool is asked."""
    module: ModuleType = request.param
    return module


@pytest.fixture
def table(backends: Backends) -> Iterator[str]:
    """The name of a table `(x int)` of this test's own."""
    name = f"t_{uuid4().hex[:12]}"
    backends.ask(f"CREATE TABLE {name} (x int)")
    yield name
    backends.ask(f"DROP TABLE IF EXISTS {name}")


@pytest.fixture
def role(backends: Backends) -> Iterator[str]:
    """The name of a role of this test's own, which may not log in."""
    name = f"r_{uuid4().hex[:12]}"
    backends.ask(f"CREATE ROLE {name}")
    yield name
    backends.ask(f"DROP OWNED BY {name}")
    backends.ask(f"DROP ROLE {name}")


@pytest.fixture
def ledger(backends: Backends) -> Iterator[Ledger]:
    """The ledger of the writes of this test."""
    with created_ledger(backends) as ledger:
        yield ledger


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection[Any]]:
    """A connection that no pool knows."""
    conn = await Connection.connect(dsn, autocommit=True)
    yield conn
    await conn.close()


@pytest.fixture
async def server(asyncpool_server: Server, dsn: str) -> AsyncIterator[Server]:
    """The server for a test that stops, kills or pauses it: afterwards it runs again."""
    if asyncpool_server.source == "dsn":
        pytest.skip("a server that was given by its DSN is not ours to stop")
    yield asyncpool_server
    if asyncpool_server.state == "paused":
        await asyncpool_server.resume()
    if asyncpool_server.state == "stopped":
        await asyncpool_server.start()


@pytest.fixture(scope="session")
def another_server(asyncpool_server: Server) -> Iterator[Server]:
    """A second server, which has TLS and prepared transactions."""
    if asyncpool_server.source not in ("binaries", "wheel"):
        pytest.skip(f"{asyncpool_server.source}: a server's settings are not ours to choose")
    with psycopg.connect(asyncpool_server.dsn) as conn:
        (data,) = conn.execute("SHOW data_directory").fetchone() or ("",)
    with certificate(Path(data).stat()) as files, asyncio.Runner() as runner:
        settings: dict[str, Any] = {"max_prepared_transactions": 4, "ssl": True, **files}
        server = postgres(settings=settings, source=asyncpool_server.source)
        try:
            running = runner.run(server.__aenter__())
        except ServerError as error:
            if "SSL is not supported" in str(error):
                pytest.skip("the server was built without OpenSSL")
            raise
        yield running
        runner.run(server.__aexit__(None, None, None))


@contextmanager
def certificate(owner: os.stat_result) -> Iterator[dict[str, str]]:
    """The settings that name a certificate for 127.0.0.1 and its key, of this owner."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl, which makes certificates, is not on the PATH")
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        key, cert = folder / "key", folder / "cert"
        subprocess.run(
            [
                *(openssl, "req", "-x509", "-nodes", "-days", "2", "-newkey", "rsa:2048"),
                *("-subj", "/CN=127.0.0.1", "-keyout", key, "-out", cert),
            ],
            check=True,
            capture_output=True,
        )
        key.chmod(0o600)
        if os.geteuid() == 0:
            for file in (key, cert):
                os.chown(file, owner.st_uid, owner.st_gid)
        yield {"ssl_key_file": str(key), "ssl_cert_file": str(cert)}


@pytest.fixture(scope="session")
def running_trio() -> Iterator[Servers]:
    """A primary and two standbys, for tests that promote none."""
    with asyncio.Runner() as runner:
        context = servers(2)
        running = runner.run(context.__aenter__())
        yield running
        runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def trio(running_trio: Servers, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Servers]:
    """A primary and two standbys: after the test they run again, and no crash was logged."""
    caplog.set_level(logging.INFO)
    await running_trio.heal()
    yield running_trio
    records = caplog.get_records("call")
    assert [each.getMessage() for each in records if each.levelno >= logging.ERROR] == []
    await running_trio.heal()
