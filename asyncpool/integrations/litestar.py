"""Litestar: a plugin with the pool's life and its dependencies, and handlers for its health."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.plugins import InitPlugin
from psycopg import AsyncConnection

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from ._shared import Block, Source, Undone, Work, check_source, readiness, serving
from .asgi import (
    App,
    CancelOnDisconnect,
    Receive,
    Scope,
    Send,
    TransactionPerRequest,
    pool_of,
    transaction_of,
)

__all__ = [
    "CancelOnDisconnect",
    "Connection",
    "Pool",
    "PoolPlugin",
    "TransactionPerRequest",
    "health_handler",
    "readiness_handler",
]


Pool = NamedDependency[AsyncConnectionPool]
"""The type of a handler's parameter that is named like a pool."""
Connection = NamedDependency[AsyncConnection]
"""The same for a connection."""

LENT = "asyncpool.lent"

AnyRequest = Request[Any, Any, Any]


class PoolPlugin(InitPlugin):
    """Opens a pool with the app, closes it with the app, and gives it to handlers.

    Dependencies of a pool "pool" are `pool`, `connection` and `transaction`, of a pool "reports"
    `reports`, `reports_connection` and `reports_transaction`. Their blocks end before the response
    is sent. `request_transaction` is that of `TransactionPerRequest`. Where no connection was to be
    had the client gets 503, unless the app handles `PoolTimeout` itself.

    Args:
        pool: the pool, or a callable that makes it at the start. One that is in the app's state
            already, as a test puts it there, is used, and neither opened nor closed.
        name: its name in the app's state.
        wait: whether the start fails unless it has its `min_size` connections.
        timeout: seconds to wait for that.
        retry_after: seconds after which a client that got 503 may come again.

    Raises:
        TypeError: it is neither a pool nor a callable.
    """

    def __init__(
        self,
        pool: Source,
        name: str = "pool",
        *,
        wait: bool = False,
        timeout: float = 30.0,
        retry_after: int = 1,
    ) -> None:
        check_source(name, pool)
        self.pool = pool
        self.name = name
        self.wait = wait
        self.timeout = timeout
        self.retry_after = retry_after

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """See `InitPlugin`."""
        prefix = "" if self.name == "pool" else f"{self.name}_"
        provided: dict[str, Callable[..., Any]] = {
            self.name: self._pool,
            f"{prefix}connection": self._connection,
            f"{prefix}transaction": self._transaction,
            f"{prefix}request_transaction": self._request_transaction,
        }
        for name, function in provided.items():
            app_config.dependencies.setdefault(name, Provide(function))
        app_config.middleware.insert(0, RollbackLeftovers)
        app_config.lifespan.insert(0, self._lifespan)
        for error in (PoolTimeout, TooManyRequests):
            app_config.exception_handlers.setdefault(error, self._busy)
        return app_config

    def _lifespan(self, app: Litestar) -> AbstractAsyncContextManager[None]:
        return serving(app.state, self.name, self.pool, wait=self.wait, timeout=self.timeout)

    def _busy(self, request: AnyRequest, error: Exception) -> Response[dict[str, str]]:
        headers = {"Retry-After": str(self.retry_after)}
        return Response({"detail": "busy, try again"}, status_code=503, headers=headers)

    def _find(self, request: AnyRequest) -> AsyncConnectionPool:
        return pool_of(request.scope, self.name)

    async def _pool(self, request: AnyRequest) -> AsyncConnectionPool:
        return self._find(request)

    async def _connection(self, request: AnyRequest) -> AsyncGenerator[AsyncConnection, None]:
        async with _lend(request, self._find(request).connection) as conn:
            yield conn

    async def _transaction(self, request: AnyRequest) -> AsyncGenerator[AsyncConnection, None]:
        async with _lend(request, self._find(request).transaction) as conn:
            yield conn

    async def _request_transaction(self, request: AnyRequest) -> AsyncConnection:
        return await transaction_of(request.scope, self.name)


class RollbackLeftovers:
    """Rolls back what Litestar forgets: where one dependency fails, it ends no other."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        works: list[Work] = scope.setdefault(LENT, [])
        try:
            await self.app(scope, receive, send)
        finally:
            for work in works:
                await work.end(Undone())


@asynccontextmanager
async def _lend(request: AnyRequest, make: Callable[[], Block]) -> AsyncIterator[AsyncConnection]:
    work = Work(make)
    scope: Scope = request.scope
    scope[LENT].append(work)
    conn = await work.connection()
    try:
        yield conn
    except BaseException as error:
        await work.end(error)
        raise
    await work.end(None)


def health_handler(path: str = "/health") -> HTTPRouteHandler:
    """Whether the process answers: always 200, and the server of the database is not asked."""

    @get(path, sync_to_thread=False)
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return health


def readiness_handler(path: str = "/ready", *names: str, timeout: float = 1.0) -> HTTPRouteHandler:
    """Whether the pools can serve: 503 while one is down, and the reports of all.

    It never waits in a line.

    Args:
        path: where it is.
        names: the pools' names in the app's state; without any: "pool".
        timeout: seconds that a ping may take.
    """

    @get(path)
    async def ready(state: State) -> Response[dict[str, Any]]:
        pools = {name: state[name] for name in names or ("pool",)}
        status, body = await readiness(pools, timeout)
        return Response(body, status_code=status)

    return ready
