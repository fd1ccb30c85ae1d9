"""Starlette and FastAPI (without dependencies): pools with the app's lifetime, health checks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, cast

from psycopg import AsyncConnection
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asyncpool import AsyncConnectionPool, Cluster, PoolTimeout, TooManyRequests

from . import asgi
from ._shared import (
    BusyAnswers,
    Details,
    Pool,
    Source,
    Sources,
    check_source,
    is_shown,
    readiness,
    serving,
)
from .asgi import (
    CancelOnDisconnect,
    LabelRequests,
    RequestLabel,
    Scope,
    TransactionPerRequest,
    cluster_of,
    kept_by,
    pool_of,
    transaction_of,
)
from .own_writes import ReadOwnWrites

__all__ = [
    "CancelOnDisconnect",
    "LabelRequests",
    "ReadOwnWrites",
    "RequestLimits",
    "TransactionPerRequest",
    "busy",
    "cluster",
    "health_route",
    "lifespan",
    "pool",
    "readiness_route",
    "transaction",
]

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
KEPT = AsyncConnectionPool, Cluster
Handlers = dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]


class RequestLimits(asgi.RequestLimits):
    """`asgi.RequestLimits`, whose functions are called with Starlette's `HTTPConnection`."""

    def _request(self, scope: Scope) -> HTTPConnection:
        return HTTPConnection(scope)


def lifespan(
    pool: Source | None = None,
    *,
    inner: Lifespan | None = None,
    wait: bool = False,
    timeout: float = 30.0,
    **more: Sources,
) -> Lifespan:
    """A lifespan that opens pools when the app starts, and closes them when it stops.

    A pool can be opened only once, so an app that is started several times, as in tests, needs a
    callable. If the app's state has a pool of that name already, such as a test's, that one is
    used, and neither opened nor closed.

    Args:
        pool: the pool, or a callable that makes it at the start; it becomes `app.state.pool`. None:
            there are others only.
        inner: the app's own lifespan; the pools are open while it runs.
        wait: whether the start fails unless each pool has its `min_size` connections.
        timeout: seconds to wait for them.
        more: further pools and clusters, by their names in `app.state`, such as `cluster=`.

    Raises:
        TypeError: an argument is neither a pool, nor a cluster, nor a callable, or there is none.
    """
    pools: dict[str, Sources] = (
        more if pool is None and more else {"pool": cast("Any", pool), **more}
    )
    for name, source in pools.items():
        check_source(name, source, *((AsyncConnectionPool,) if name == "pool" else KEPT))

    @asynccontextmanager
    async def span(app: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            for name, source in pools.items():
                block = serving(app.state, name, source, wait=wait, timeout=timeout)
                await stack.enter_async_context(block)
            yield await stack.enter_async_context(inner(app)) if inner is not None else None

    return span


def pool(request: HTTPConnection, name: str = "pool") -> Pool:
    """Return the app's pool of this name.

    Raises:
        LookupError: there is no such pool.
    """
    return pool_of(request.scope, name)


def cluster(request: HTTPConnection, name: str = "cluster") -> Cluster[Any]:
    """Return the app's cluster of this name.

    Raises:
        LookupError: there is no such cluster.
    """
    return cluster_of(request.scope, name)


async def transaction(request: HTTPConnection, name: str = "pool") -> AsyncConnection[Any]:
    """Return the connection of the request's transaction; see `TransactionPerRequest`."""
    return await transaction_of(request.scope, name)


def busy(retry_after: int = 1, *, log_every: float = 10.0) -> Handlers:
    """Exception handlers that answer 503 with Retry-After when no connection was available.

    The body has a "detail", a "reason" and "retry_after". The reason is "deadline" if the request
    had too little time, "overload" if it was refused otherwise, "timeout" if it has waited in vain,
    or "unavailable" if the pool cannot connect. What the error says is logged as a warning.

    Args:
        retry_after: seconds after which the client may retry; the error may say more.
        log_every: the least seconds between two lines in the log about a route; the next line has
            the number of the requests that have none.

    Raises:
        ValueError: an argument is not a number of seconds.
    """
    answers = BusyAnswers(retry_after, log_every)

    async def unavailable(request: Request, error: Any) -> Response:
        named = RequestLabel(request.scope)
        body, headers = answers.answer(error, named(), named.route())
        return JSONResponse(body, 503, headers)

    return {PoolTimeout: unavailable, TooManyRequests: unavailable}


def health_route(path: str = "/health") -> Route:
    """Route of a liveness check: always 200, without asking the database server."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Route(path, health)


def readiness_route(
    path: str = "/ready", *names: str, timeout: float = 1.0, details: Details | None = None
) -> Route:
    """Route of a readiness check: 503 while a pool is down.

    The check never waits in a wait queue.

    Args:
        path: the route's path.
        names: the pools' names in the app's state; none: "pool".
        timeout: seconds for the ping of each pool.
        details: a plain or async function of the request: whether its client may see a report of
            each pool, with sizes, addresses and errors; None: nobody sees more than the status.
    """

    async def ready(request: Request) -> Response:
        pools = {name: kept_by(request.scope, name) for name in names or ("pool",)}
        status, body = await readiness(pools, timeout, details=await is_shown(details, request))
        return JSONResponse(body, status)

    return Route(path, ready)
