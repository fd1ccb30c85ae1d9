"""The pytest plugin: a server for the whole session, and a pool whose work is rolled back.

pytest loads this module at every start where asyncpool is installed. So it is outside the package,
whose import takes time, and imports the package only in a fixture that a test uses.
"""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from asyncpool import AsyncConnectionPool
    from asyncpool.testing import Server
    from asyncpool.testing._backend import Found

CHOICE = pytest.StashKey["Found | str"]()
FIXTURES = {"asyncpool_server", "asyncpool_dsn", "asyncpool_rollback_pool"}


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> str | list[str]:
    """Report the server that the fixtures will use, if a test uses one of them."""
    if not any(FIXTURES.intersection(getattr(item, "fixturenames", ())) for item in items):
        return []
    choice = _choice(config)
    if isinstance(choice, str):
        return f"asyncpool server: none, {choice.splitlines()[0]}"
    return f"asyncpool server: {choice.source}, {choice.description}"


@pytest.fixture(scope="session")
def asyncpool_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """A PostgreSQL server (`asyncpool.testing.Server`) that tests may stop, kill or pause.

    Its methods work in any event loop. A test that stops the server must start it again.
    """
    from asyncpool.testing import Server, ServerUnavailable  # noqa: PLC0415 - see above
    from asyncpool.testing._backend import Spec  # noqa: PLC0415

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
    """A pool on `asyncpool_server`, rolled back at the end of the test; see `rollback_pool`.

    This async fixture works with anyio's plugin, and with pytest-asyncio in its mode "auto".
    """
    from asyncpool.testing import rollback_pool  # noqa: PLC0415 - see above

    async with rollback_pool(asyncpool_dsn) as pool:
        yield pool


def _choice(config: pytest.Config) -> Found | str:
    """The session's provider, or the reason why there is none; chosen once a session."""
    from asyncpool.testing import ServerError  # noqa: PLC0415 - see above
    from asyncpool.testing._discovery import choose  # noqa: PLC0415

    if CHOICE not in config.stash:
        try:
            config.stash[CHOICE] = choose()
        except ServerError as error:
            config.stash[CHOICE] = str(error)
    return config.stash[CHOICE]
