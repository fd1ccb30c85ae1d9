"""Litestar: a plugin with the pool's lifetime and dependencies, and handlers of health checks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.plugins import InitPlugin
from psycopg import AsyncConnection

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests, label

from . import asgi
from ._shared import (
    Block,
    BusyAnswers,
    Details,
    LazyBlock,
    RolledBack,
    Source,
    check_source,
    is_shown,
    readiness,
    serving,
)
from .asgi import (
    App,
    CancelOnDisconnect,
    Receive,
    RequestLabel,
    Scope,
    Send,
    TransactionPerRequest,
    pool_of,
    transaction_of,
)

__all__ = [
    "CancelOnDisconnect",
    "ConnectionDep",
    "Pool",
    "PoolPlugin",
    "RequestLimits",
    "TransactionPerRequest",
    "health_handler",
    "readiness_handler",
]


Pool = NamedDependency[AsyncConnectionPool]
"""The type of a handler's parameter with a pool's name."""
ConnectionDep = NamedDependency[AsyncConnection]
"""The type of a handler's parameter for a connection."""

BLOCKS = "asyncpool.blocks"

AnyRequest = Request[Any, Any, Any]


class PoolPlugin(InitPlugin):
    """Plugin that opens a pool with the app, closes it with the app, and provides it to handlers.

    A pool "pool" has the dependencies `pool`, `connection` and `transaction`; a pool "reports" has
    `reports`, `reports_connection` and `reports_transaction`. Their blocks end before the response
    is sent. `request_transaction` is the connection of `TransactionPerRequest`. If no connection
    was available, the client gets 503, as from Starlette's `busy`, unless the app handles
    `PoolTimeout` and `TooManyRequests` itself.

    Args:
        pool: the pool, or a callable that makes it at the start. If the app's state has one
            already, such as a test's, that one is used, and neither opened nor closed.
        name: the pool's name in the app's state.
        wait: whether the start fails unless the pool has its `min_size` connections.
        timeout: seconds to wait for them.
        retry_after: seconds after which a client that got 503 may retry; the error may say more.
        log_every: the least seconds between two lines in the log about the 503s of a route; the
            next line has the number of the requests that have none.

    Raises:
        TypeError: `pool` is neither a pool nor a callable.
        ValueError: `retry_after` or `log_every` is not a number of seconds.
    """

    def __init__(
        self,
        pool: Source,
        name: str = "pool",
        *,
        wait: bool = False,
        timeout: float = 30.0,
        retry_after: int = 1,
        log_every: float = 10.0,
    ) -> None:
        check_source(name, pool)
        self.pool = pool
        self.name = name
        self.wait = wait
        self.timeout = timeout
        self.retry_after = retry_after
        self._answers = BusyAnswers(retry_after, log_every)

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

    def _busy(self, request: AnyRequest, error: Any) -> Response[dict[str, Any]]:
        named = RequestLabel(request.scope)
        body, headers = self._answers.answer(error, named(), named.route())
        return Response(body, status_code=503, headers=headers)

    def _find(self, request: AnyRequest) -> AsyncConnectionPool:
        return pool_of(request.scope, self.name)

    async def _pool(self, request: AnyRequest) -> AsyncConnectionPool:
        return self._find(request)

    async def _connection(self, request: AnyRequest) -> AsyncGenerator[AsyncConnection, None]:
        async with _lease(request, self._find(request).connection) as conn:
            yield conn

    async def _transaction(self, request: AnyRequest) -> AsyncGenerator[AsyncConnection, None]:
        async with _lease(request, self._find(request).transaction) as conn:
            yield conn

    async def _request_transaction(self, request: AnyRequest) -> AsyncConnection:
        return await transaction_of(request.scope, self.name)


class RequestLimits(asgi.RequestLimits):
    """`asgi.RequestLimits`, whose functions are called with Litestar's `ASGIConnection`."""

    def _request(self, scope: Scope) -> ASGIConnection[Any, Any, Any, Any]:
        return ASGIConnection(scope)


class RollbackLeftovers:
    """Middleware that ends blocks which Litestar leaves open after a failed dependency.

    It labels requests, too; see `LabelRequests`.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        blocks: list[LazyBlock] = scope.setdefault(BLOCKS, [])
        try:
            with label(RequestLabel(scope)):
                await self.app(scope, receive, send)
        finally:
            for block in blocks:
                await block.end(RolledBack())


@asynccontextmanager
async def _lease(request: AnyRequest, make: Callable[[], Block]) -> AsyncIterator[AsyncConnection]:
    block = LazyBlock(make)
    scope: Scope = request.scope
    scope[BLOCKS].append(block)
    conn = await block.connection()
    try:
        yield conn
    except BaseException as error:
        await block.end(error)
        raise
    await block.end(None)


def health_handler(path: str = "/health") -> HTTPRouteHandler:
    """Handler of a liveness check: always 200, without asking the database server."""

    @get(path, sync_to_thread=False)
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return health


def readiness_handler(
    path: str = "/ready", *names: str, timeout: float = 1.0, details: Details | None = None
) -> HTTPRouteHandler:
    """Handler of a readiness check: 503 while a pool is down.

    The check never waits in a wait queue.

    Args:
        path: the handler's path.
        names: the pools' names in the app's state; none: "pool".
        timeout: seconds for the ping of each pool.
        details: a plain or async function of the request: whether its client may see a report of
            each pool, with sizes, addresses and errors; None: nobody sees more than the status.
    """

    @get(path)
    async def ready(state: State, request: AnyRequest) -> Response[dict[str, Any]]:
        pools = {name: state[name] for name in names or ("pool",)}
        status, body = await readiness(pools, timeout, details=await is_shown(details, request))
        return Response(body, status_code=status)

    return ready
