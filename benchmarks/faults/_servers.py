"""Servers to break: a new one each time, or, where time is short, one again that was mended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

import psycopg

from asyncpool.testing import Server, postgres
from benchmarks.faults._cast import make_database, make_template, make_user
from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import NotHere


class Servers:
    """All servers of a run.

    Args:
        again: whether one that has nothing special is used again.
    """

    def __init__(self, *, again: bool) -> None:
        self._again = again
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
    async def one(self, scene: Scene) -> AsyncIterator[Server]:
        """A server for a scene, with an empty database.

        Raises:
            NotHere: it is one that was given by its DSN.
        """
        if not self._again or scene.server is not postgres:
            async with scene.server() as server:
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
        await _mend(server)
        self._free.append(server)


async def _prepare(server: Server) -> None:
    if server.source == "dsn":
        msg = "a given server is not ours to break"
        raise NotHere(msg)
    await make_user(server.dsn)
    await make_template(server.dsn)


async def _mend(server: Server) -> None:
    await server.resume()
    if server.state == "stopped":
        await server.start()
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
        await conn.execute("DROP DATABASE IF EXISTS app WITH (FORCE)")
