"""aiohttp's server: pools for the life of an app, a transaction a request, and its health."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from psycopg import AsyncConnection

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from ._shared import Source, Work, check_source, check_status, opened, readiness

__all__ = [
    "POOL",
    "busy",
    "health",
    "pool_context",
    "ready",
    "transaction",
    "transaction_per_request",
]

Key = web.AppKey[AsyncConnectionPool[Any]]

POOL: web.AppKey[AsyncConnectionPool] = web.AppKey("pool", AsyncConnectionPool)
"""Under which an app has its pool, where no other key is given."""

# aiohttp before 3.14 has no such keys, and after it warns of all others.
WORKS: Any = getattr(web, "RequestKey", lambda name, kind: name)("asyncpool.transactions", dict)


def pool_context(
    pool: Source, key: Key = POOL, *, wait: bool = False, timeout: float = 30.0
) -> Callable[[web.Application], AsyncIterator[None]]:
    """For `app.cleanup_ctx`: opens a pool when the app starts, and closes it when it stops.

    One that the app has already, as a test puts it there, is used, and neither opened nor closed.

    Args:
        pool: the pool, or a callable that makes it at the start.
        key: where the app has it; a key of its own for each of several pools.
        wait: whether the start fails unless it has its `min_size` connections.
        timeout: seconds to wait for that.

    Raises:
        TypeError: it is neither a pool nor a callable.
    """
    check_source("pool", pool)

    async def context(app: web.Application) -> AsyncIterator[None]:
        if key in app:
            yield
            return
        async with opened(pool, wait=wait, timeout=timeout) as app[key]:
            yield

    return context


def transaction_per_request(
    key: Key = POOL, *, roll_back_from: int = 500, timeout: float | None = None
) -> Middleware:
    """Middleware: one transaction for all that a request does, ended before its response goes out.

    It is begun by the first `transaction`. It is rolled back when the handler raises what is no
    `HTTPException`, and when the status is `roll_back_from` or higher.

    Args:
        key: where the app has the pool.
        roll_back_from: the lowest status that rolls back: 400 for client errors too, 600 for
            exceptions only.
        timeout: seconds to wait for a connection; None: the pool's `timeout`.

    Raises:
        ValueError: `roll_back_from` is no such status.
    """
    check_status(roll_back_from)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        work = Work(lambda: request.config_dict[key].transaction(timeout), roll_back_from)
        request[WORKS] = {**request.get(WORKS, {}), key: work}
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            await work.answer(answer.status)
            raise
        except BaseException as error:
            await work.end(error)
            raise
        await work.answer(response.status)
        return response

    return middleware


async def transaction(request: web.Request, key: Key = POOL) -> AsyncConnection[Any]:
    """The connection of the request's transaction, the same each time.

    Raises:
        LookupError: `transaction_per_request` is not among the app's middlewares.
        RuntimeError: the transaction is over.
        PoolTimeout: there was no connection in time.
    """
    work: Work | None = request.get(WORKS, {}).get(key)
    if work is None:
        msg = f"transaction_per_request({key!r}) is not among the app's middlewares"
        raise LookupError(msg)
    return await work.connection()


def busy(retry_after: int = 1) -> Middleware:
    """Middleware: where no connection was to be had the client gets 503, to come again.

    Args:
        retry_after: seconds after which it may.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (PoolTimeout, TooManyRequests):
            headers = {"Retry-After": str(retry_after)}
            raise web.HTTPServiceUnavailable(headers=headers) from None

    return middleware


async def health(request: web.Request) -> web.Response:
    """Handler: whether the process answers; 200, and the server of the database is not asked."""
    return web.json_response({"status": "ok"})


def ready(*keys: Key, timeout: float = 1.0) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler: whether the pools can serve; 503 while one is down, and the reports of all.

    It never waits in a line.

    Args:
        keys: where the app has them; without any: `POOL`.
        timeout: seconds that a ping may take.
    """

    async def handler(request: web.Request) -> web.Response:
        pools = {_name(key): request.config_dict[key] for key in keys or (POOL,)}
        status, body = await readiness(pools, timeout)
        return web.json_response(body, status=status)

    return handler


def _name(key: Key) -> str:
    # AppKey puts the module before the name that it was given.
    return key._name.rpartition(".")[2]
