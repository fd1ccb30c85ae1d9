"""aiohttp's server: the pools' lifetime, a request's transaction and limits, health checks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from psycopg import AsyncConnection

from asyncpool import AsyncConnectionPool, Cluster, PoolTimeout, TooManyRequests, label

from ._limits import Flow, Limits, Priority, Seconds
from ._own_writes import COOKIE, MAX_AGE, TokenCarrier
from ._shared import (
    BusyAnswers,
    Details,
    LazyBlock,
    Source,
    Sources,
    check_source,
    check_status,
    handler_name,
    is_shown,
    opened,
    readiness,
    request_label,
    write_of,
)

__all__ = [
    "CLUSTER",
    "POOL",
    "busy",
    "cluster_context",
    "health",
    "label_requests",
    "pool_context",
    "read_own_writes",
    "ready",
    "request_limits",
    "transaction",
    "transaction_per_request",
]

Key = web.AppKey[AsyncConnectionPool[Any]] | web.AppKey[Cluster[Any]]

POOL: web.AppKey[AsyncConnectionPool] = web.AppKey("pool", AsyncConnectionPool)
"""The default key of an app's pool."""

CLUSTER: web.AppKey[Cluster[Any]] = web.AppKey("cluster", Cluster)
"""The default key of an app's cluster."""

# aiohttp before 3.14 has no RequestKey; later versions warn of all other keys.
BLOCKS: Any = getattr(web, "RequestKey", lambda name, kind: name)("asyncpool.transactions", dict)


def pool_context(
    pool: Source, key: Key = POOL, *, wait: bool = False, timeout: float = 30.0
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A context for `app.cleanup_ctx`: the pool opens at the app's start and closes at its end.

    If the app has a pool under the key already, such as a test's, that one is used, and neither
    opened nor closed.

    Args:
        pool: the pool, or a callable that makes it at the start.
        key: the app's key for the pool; each of several pools needs its own.
        wait: whether the start fails unless the pool has its `min_size` connections.
        timeout: seconds to wait for them.

    Raises:
        TypeError: `pool` is neither a pool nor a callable.
    """
    check_source("pool", pool)
    return _context(pool, key, wait=wait, timeout=timeout)


def cluster_context(
    cluster: Cluster[Any] | Callable[[], Cluster[Any]],
    key: web.AppKey[Cluster[Any]] = CLUSTER,
    *,
    wait: bool = False,
    timeout: float = 30.0,
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A context for `app.cleanup_ctx` as `pool_context`, for a cluster.

    Args:
        cluster: the cluster, or a callable that makes it at the start.
        key: the app's key for the cluster.
        wait, timeout: as for `pool_context`; see `Cluster.wait`.

    Raises:
        TypeError: `cluster` is neither a cluster nor a callable.
    """
    check_source("cluster", cluster, Cluster)
    return _context(cluster, key, wait=wait, timeout=timeout)


def _context(
    source: Sources, key: web.AppKey[Any], *, wait: bool, timeout: float
) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(app: web.Application) -> AsyncIterator[None]:
        if key in app:
            yield
            return
        async with opened(source, wait=wait, timeout=timeout) as app[key]:
            yield

    return context


def read_own_writes(
    key: web.AppKey[Cluster[Any]] = CLUSTER,
    *,
    cookie: str | None = COOKIE,
    header: str | None = None,
    max_age: int = MAX_AGE,
    secure: bool = False,
    timeout: float = 1.0,
) -> Middleware:
    """Middleware that runs each request in a context of `cluster.own_writes()`.

    See `asyncpool.integrations.own_writes.ReadOwnWrites`. A response that the handler has prepared
    itself, as a stream or a websocket, has begun by then and carries no token.

    Args:
        key: the app's key for the cluster.
        cookie, header, max_age, secure, timeout: as there.

    Raises:
        ValueError: an argument is invalid.
    """
    carrier = TokenCarrier(cookie, header, max_age, secure, timeout)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = () if header is None else request.headers.getall(header, ())
        cookies = request.headers.getall("Cookie", ())
        with carrier.began(request.config_dict[key], cookies, given) as own:
            came = own.token

            async def carry(response: web.StreamResponse) -> None:
                if not response.prepared:
                    response.headers.extend(await carrier.headers_after(own, came))

            try:
                response = await handler(request)
            except web.HTTPException as answer:
                await carry(answer)
                raise
            await carry(response)
            return response

    return middleware


@web.middleware
async def label_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware that labels each request, such as "GET /orders/{id} (shop.read_order)".

    The label is shown wherever the pool says who has a connection.
    """
    with label(_label_of(request)):
        return await handler(request)


def _label_of(request: web.Request) -> Callable[[], str]:
    """Return a label that does not refer to the request, whose task may serve others after it."""
    method, path, match = request.method, request.path, request.match_info

    def text() -> str:
        resource = match.route.resource
        named = path if resource is None else resource.canonical
        return request_label(method, named, match.handler)

    return text


def transaction_per_request(
    key: Key = POOL, *, roll_back_from: int = 500, timeout: float | None = None
) -> Middleware:
    """Middleware with one transaction for each request, which ends before the response is sent.

    The first call of `transaction` begins it. It is rolled back if the handler raises an exception
    other than `HTTPException`, or if the status is `roll_back_from` or higher.

    Args:
        key: the app's key for the pool.
        roll_back_from: the lowest status that rolls back: 400 for client errors too, 600 for
            exceptions only.
        timeout: seconds to wait for a connection; None: the pool's `timeout`.

    Raises:
        ValueError: `roll_back_from` is no such status.
    """
    check_status(roll_back_from)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        block = LazyBlock(
            lambda: write_of(request.config_dict[key]).transaction(timeout), roll_back_from
        )
        request[BLOCKS] = {**request.get(BLOCKS, {}), key: block}
        try:
            with label(_label_of(request), default=True):
                response = await handler(request)
        except web.HTTPException as answer:
            await block.answer(answer.status)
            raise
        except BaseException as error:
            await block.end(error)
            raise
        await block.answer(response.status)
        return response

    return middleware


async def transaction(request: web.Request, key: Key = POOL) -> AsyncConnection[Any]:
    """Return the connection of the request's transaction; the first call begins it.

    Raises:
        LookupError: `transaction_per_request` is not among the app's middlewares.
        RuntimeError: the transaction has ended.
        PoolTimeout: no connection was available in time.
    """
    block: LazyBlock | None = request.get(BLOCKS, {}).get(key)
    if block is None:
        msg = f"transaction_per_request({key!r}) is not among the app's middlewares"
        raise LookupError(msg)
    return await block.connection()


def request_limits(
    seconds: Seconds = None,
    *,
    header: str | None = None,
    priority: Priority = None,
    flow: Flow = None,
) -> Middleware:
    """Middleware that gives each request a deadline, a priority and a flow, which the pool can see.

    All that a handler borrows is in a block `asyncpool.within(seconds, priority=, flow=)`. So a
    request that the pool could not serve before its deadline is refused at once, and gets 503 where
    `busy` is in use. Nothing is cancelled at the deadline. It holds for a response that the handler
    streams too, and websockets have none. Requests are labelled; see `label_requests`.

    Each of `seconds`, `priority` and `flow` is a value for all requests, or a plain or async
    function of the request that returns it.

    Args:
        seconds: the time from a request's arrival until its deadline; None: no deadline.
        header: the header in which a client may ask for less time, in seconds, such as
            "X-Request-Timeout". What is not a number of zero or more is ignored. None: no header.
        priority: the requests with the highest priority are served first; None: 0.
        flow: of the requests with the same priority, flows such as tenants take turns. A client
            that can choose its flow or its priority gets more than its share: take them from what
            is verified.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """
    limits = Limits(seconds, header, priority, flow)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        with label(_label_of(request), default=True), await limits.place(request):
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await handler(request)
            asked = () if limits.header is None else request.headers.getall(limits.header, ())
            with await limits.deadline(request, asked):
                return await handler(request)

    return middleware


def busy(retry_after: int = 1, *, log_every: float = 10.0) -> Middleware:
    """Middleware that answers 503 with Retry-After when no connection was available.

    The body is JSON, with a "detail", a "reason" and "retry_after". The reason is "deadline" if the
    request had too little time, "overload" if it was refused otherwise, "timeout" if it has waited
    in vain, or "unavailable" if the pool cannot connect. What the error says is logged as a
    warning.

    Args:
        retry_after: seconds after which the client may retry; the error may say more.
        log_every: the least seconds between two lines in the log about a route; the next line has
            the number of the requests that have none.

    Raises:
        ValueError: an argument is not a number of seconds.
    """
    answers = BusyAnswers(retry_after, log_every)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (PoolTimeout, TooManyRequests) as error:
            if request.writer.output_size:  # a response has begun: there is no place for another
                raise
            body, headers = answers.answer(error, _label_of(request)(), _route_of(request))
        raise web.HTTPServiceUnavailable(
            headers=headers, text=json.dumps(body), content_type="application/json"
        )

    return middleware


def _route_of(request: web.Request) -> str:
    """Return the name of a request's route, which has nothing of the client's in it."""
    match = request.match_info
    resource = match.route.resource
    path = "" if resource is None else resource.canonical
    return f"{path} {handler_name(match.handler)}"


async def health(request: web.Request) -> web.Response:
    """Handler of a liveness check: always 200, without asking the database server."""
    return web.json_response({"status": "ok"})


def ready(
    *keys: Key, timeout: float = 1.0, details: Details | None = None
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler of a readiness check: 503 while a pool is down.

    The check never waits in a wait queue.

    Args:
        keys: the app's keys for the pools; none: `POOL`.
        timeout: seconds for the ping of each pool.
        details: a plain or async function of the request: whether its client may see a report of
            each pool, with sizes, addresses and errors; None: nobody sees more than the status.
    """

    async def handler(request: web.Request) -> web.Response:
        pools = {_name(key): request.config_dict[key] for key in keys or (POOL,)}
        status, body = await readiness(pools, timeout, details=await is_shown(details, request))
        return web.json_response(body, status=status)

    return handler


def _name(key: Key) -> str:
    # AppKey prefixes the name with the module.
    return key._name.rpartition(".")[2]
