"""The Starlette application: a path for each test, and one that tells the process's CPU time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html import escape
from random import randint, sample
from resource import RUSAGE_SELF, getrusage
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from benchmarks.web._stores import Store, Transactions
from benchmarks.web._tests import ADDED, ROWS, TWENTY

USAGE = "usage"
Endpoint = Callable[[], Awaitable[Response]]


class Application:
    """The endpoints on one store, and how many requests are under way and were answered."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._answered = 0
        self._under_way = 0

    def starlette(self) -> Starlette:
        """Return the ASGI application."""
        endpoints: dict[str, Endpoint] = {
            "row": self._row,
            "twenty": self._twenty,
            "fortunes": self._fortunes,
            "updates": self._updates,
        }
        if isinstance(self._store, Transactions):
            endpoints["transaction"] = self._transaction
        routes = [Route(f"/{path}", self._counted(each)) for path, each in endpoints.items()]
        return Starlette(routes=[*routes, Route(f"/{USAGE}", self._usage)])

    def _counted(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            self._under_way += 1
            try:
                return await endpoint()
            finally:
                self._under_way -= 1
                self._answered += 1

        return answer

    async def _usage(self, _: Request) -> Response:
        usage = getrusage(RUSAGE_SELF)
        return JSONResponse(
            {
                "cpu": usage.ru_utime + usage.ru_stime,
                "answered": self._answered,
                "under_way": self._under_way,
            }
        )

    async def _row(self) -> Response:
        return JSONResponse(_world(await self._store.row(randint(1, ROWS))))

    async def _transaction(self) -> Response:
        assert isinstance(self._store, Transactions), "bug: this store has no such path"
        return JSONResponse(_world(await self._store.row_in_transaction(randint(1, ROWS))))

    async def _twenty(self) -> Response:
        keys = sample(range(1, ROWS + 1), TWENTY)
        return JSONResponse([_world(row) for row in await self._store.rows(keys)])

    async def _fortunes(self) -> Response:
        rows = [(number, message) for number, message in await self._store.fortunes()]
        rows.append((0, ADDED))
        rows.sort(key=lambda row: row[1])
        cells = "".join(
            f"<tr><td>{number}</td><td>{escape(message)}</td></tr>" for number, message in rows
        )
        return HTMLResponse(
            "<!DOCTYPE html><html><head><title>Fortunes</title></head><body><table>"
            f"<tr><th>id</th><th>message</th></tr>{cells}</table></body></html>"
        )

    async def _updates(self) -> Response:
        # Sorted by key, so that requests cannot deadlock.
        keys = sorted(sample(range(1, ROWS + 1), TWENTY))
        changes = [(randint(1, ROWS), key) for key in keys]
        await self._store.update(changes)
        return JSONResponse([_world((key, number)) for number, key in changes])


def _world(row: Any) -> dict[str, int]:
    return {"id": row[0], "number": row[1]}
