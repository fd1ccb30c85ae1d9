"""The pytest plugin: a server for the whole session, and a pool whose work is undone.

pytest loads this at every start, wherever asyncpool is installed: nothing heavy is imported
before it is needed, and no server is started before a test asks for one.
"""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import pytest

from ._backend import Found, ServerError, ServerUnavailable, Spec
from ._discovery import choose
from ._server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from asyncpool import AsyncConnectionPool

CHOICE = pytest.StashKey[Found | str]()


def pytest_report_header(config: pytest.Config) -> str:
    """Say which server the fixtures will take."""
    choice = _choice(config)
    if isinstance(choice, str):
        return f"asyncpool server: none, {choice.splitlines()[0]}"
    return f"asyncpool server: {choice.source}, {choice.description}"


@pytest.fixture(scope="session")
def asyncpool_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """A PostgreSQL server (`asyncpool.testing.Server`), to stop, kill or pause as well.

    Its methods work in any event loop; a test that stops it starts it again.
    """
    choice = _choice(pytestconfig)
    if isinstance(choice, str):
        pytest.fail(choice, pytrace=False)
    try:
        backend = choice.open(Spec(), Event())
    except ServerUnavailable as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield Server(backend)
    finally:
        backend.close()


@pytest.fixture(scope="session")
def asyncpool_dsn(asyncpool_server: Server) -> str:
    """The connection string of `asyncpool_server`."""
    return asyncpool_server.dsn


@pytest.fixture
async def asyncpool_rollback_pool(asyncpool_dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    """A pool on that server whose work is undone at the end of the test; see `rollback_pool`.

    It is an async fixture, for anyio's plugin, and for pytest-asyncio in its mode "auto".
    """
    from ._rollback import rollback_pool  # noqa: PLC0415 - see above

    async with rollback_pool(asyncpool_dsn) as pool:
        yield pool


def _choice(config: pytest.Config) -> Found | str:
    """The server that this session takes, or why there is none: asked once, so that it stays."""
    if CHOICE not in config.stash:
        try:
            config.stash[CHOICE] = choose()
        except ServerError as error:
            config.stash[CHOICE] = str(error)
    return config.stash[CHOICE]
