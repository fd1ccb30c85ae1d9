"""The servers of a run: a new one for each trial, or repaired ones in a quick run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

import psycopg

from asyncpool.testing import Server, postgres
from benchmarks.faults._database import make_database, make_template, make_user
from benchmarks.faults._fault import Fault
from benchmarks.faults._trial import Unsupported


class Servers:
    """All servers of a run.

    Args:
        reuse: whether a server with default settings is used for several trials.
    """

    def __init__(self, *, reuse: bool) -> None:
        self._reuse = reuse
        self._free: list[Server] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def one(self, fault: Fault) -> AsyncIterator[Server]:
        """Provide a server for a fault, with an empty database.

        Raises:
            Unsupported: the server was given by its DSN.
        """
        if not self._reuse or fault.server is not postgres:
            async with fault.server() as server:
                await _prepare(server)
                await make_database(server.dsn)
                yield server
            return
        if self._free:
            server = self._free.pop()
        else:
            server = await self._stack.enter_async_context(postgres())
            await _prepare(server)
        await make_database(server.dsn)
        yield server
        await _repair(server)
        self._free.append(server)


async def _prepare(server: Server) -> None:
    if server.source == "dsn":
        msg = "faults are not caused on a server that was given by its DSN"
        raise Unsupported(msg)
    await make_user(server.dsn)
    await make_template(server.dsn)


async def _repair(server: Server) -> None:
    await server.resume()
    if server.state == "stopped":
        await server.start()
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
        await conn.execute("DROP DATABASE IF EXISTS app WITH (FORCE)")
