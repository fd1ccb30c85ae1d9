"""Middleware for any ASGI framework: a request's transaction, limits and end on disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from psycopg import AsyncConnection

from asyncpool import Cluster, label

from ._limits import Flow, Limits, Priority, Seconds
from ._shared import LazyBlock, Pool, check_status, handler_name, request_label, write_of

__all__ = [
    "CancelOnDisconnect",
    "LabelRequests",
    "RequestLimits",
    "TransactionPerRequest",
    "cluster_of",
    "pool_of",
    "transaction_of",
]

# Each framework has types of its own for these mappings.
Scope = Any
Message = Any
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BLOCKS = "asyncpool.transactions"


class LabelRequests:
    """Middleware that labels each request, such as "GET /orders/{id} (shop.read_order)".

    The label is shown wherever the pool says who has a connection. The other middlewares label
    requests too, and so does `pool_of`, and with it the dependencies. An app that has none of them,
    or uses the pool in websockets, needs this one.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        with label(RequestLabel(scope)):
            await self.app(scope, receive, send)


class RequestLabel:
    """The label of a request, formatted when it is shown: the route is found after middlewares."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __call__(self) -> str:
        """Return the method, the route's template, or else the path, and the endpoint."""
        scope = self._scope
        template = scope.get("path_template") or _template(scope)
        method = scope.get("method", "WEBSOCKET")
        return request_label(method, template or scope["path"], self._handler())

    def route(self) -> str:
        """Return the name of the route, which has nothing of the client's in it."""
        scope, handler = self._scope, self._handler()
        template = scope.get("path_template") or getattr(scope.get("route"), "path_format", "")
        return template if handler is None else f"{template} {handler_name(handler)}"

    def _handler(self) -> Any:
        scope = self._scope
        return scope.get("endpoint") or getattr(scope.get("route_handler"), "fn", None)


def _template(scope: Scope) -> str:
    """Return the path of Starlette's route with what routers and mounts put before it."""
    route, path = scope.get("route"), scope["path"]
    template: str = getattr(route, "path_format", "")
    if (regex := getattr(route, "path_regex", None)) is None:
        return template
    starts = [at for at, each in enumerate(path) if each == "/"]
    before = next((path[:at] for at in starts if regex.match(path[at:])), "")
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    shown = [f"{{{names[each]}}}" if each in names else each for each in before.split("/")]
    return "/".join(shown) + template


class TransactionPerRequest:
    """Middleware with one transaction for each request, which ends before the response begins.

    The first call of `transaction_of` begins it. The commit comes before the response's first byte,
    so a client never gets a success for a failed commit. The transaction is rolled back if the app
    raises, if the response's status is `roll_back_from` or higher, or if there is no response.
    Requests are labelled; see `LabelRequests`.

    Args:
        app: the ASGI app.
        name: the pool's name in the app's state.
        roll_back_from: the lowest status that rolls back: 400 for client errors too, 600 for
            exceptions only.
        timeout: seconds to wait for a connection; None: the pool's `timeout`.

    Raises:
        ValueError: `roll_back_from` is no such status.
    """

    def __init__(
        self,
        app: App,
        name: str = "pool",
        roll_back_from: int = 500,
        timeout: float | None = None,
    ) -> None:
        check_status(roll_back_from)
        self.app = app
        self.name = name
        self.roll_back_from = roll_back_from
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        block = LazyBlock(
            lambda: pool_of(scope, self.name).transaction(self.timeout), self.roll_back_from
        )
        scope[BLOCKS] = {**scope.get(BLOCKS, {}), self.name: block}

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                await block.answer(message["status"])
            await send(message)

        try:
            with label(RequestLabel(scope), default=True):
                await self.app(scope, receive, respond)
        except BaseException as error:
            await block.end(error)
            raise
        await block.answer(600)  # there was no response, or this does nothing


class RequestLimits:
    """Middleware that gives each request a deadline, a priority and a flow, which the pool can see.

    All that a request borrows is in a block `asyncpool.within(seconds, priority=, flow=)`. So a
    request that the pool could not serve before its deadline is refused at once, and gets 503 where
    `busy` is in use. Nothing is cancelled at the deadline. It holds for a streamed response too,
    and websockets have none. It ends with the response, so that background tasks have time; but
    those of a request that runs in a task of its own, as within a `BaseHTTPMiddleware`, have it
    still, and so may those after a stream. Priority and flow hold to the end. Requests are
    labelled; see `LabelRequests`.

    Each of `seconds`, `priority` and `flow` is a value for all requests, or a plain or async
    function that returns it for one: here of the ASGI scope; in `asyncpool.integrations.starlette`
    of an `HTTPConnection`; in `asyncpool.integrations.litestar` of an `ASGIConnection`.

    Args:
        app: the ASGI app.
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

    def __init__(
        self,
        app: App,
        seconds: Seconds = None,
        *,
        header: str | None = None,
        priority: Priority = None,
        flow: Flow = None,
    ) -> None:
        self.app = app
        self._limits = Limits(seconds, header, priority, flow)
        self._header = (header or "").lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        request = self._request(scope)
        place = await self._limits.place(request)
        if scope["type"] == "websocket":
            with label(RequestLabel(scope), default=True), place:
                await self.app(scope, receive, send)
            return
        asked = [text.decode("latin-1") for name, text in scope["headers"] if name == self._header]
        deadline = await self._limits.deadline(request, asked)

        async def respond(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                until_response.close()  # in another task this changes nothing

        with label(RequestLabel(scope), default=True), place, ExitStack() as until_response:
            until_response.enter_context(deadline)
            await self.app(scope, receive, respond)

    def _request(self, scope: Scope) -> Any:
        """Return the argument of the app's functions."""
        return scope


class CancelOnDisconnect:
    """Middleware that cancels a request when its client disconnects, which no ASGI server does.

    The pool then cancels the query on the server and reuses the connection. This must be the
    outermost middleware. Requests are labelled; see `LabelRequests`.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body: asyncio.Queue[Message] = asyncio.Queue(1)
        request = asyncio.current_task()
        assert request is not None, "bug: an ASGI app runs in a task"
        disconnected = False

        async def watch() -> None:
            nonlocal disconnected
            while (message := await receive())["type"] != "http.disconnect":
                await body.put(message)
            disconnected = True
            request.cancel()

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                watcher.cancel()  # do not cancel later work, such as background tasks
            await send(message)

        watcher = asyncio.create_task(watch())
        try:
            with label(RequestLabel(scope), default=True):
                await self.app(scope, body.get, respond)
        except asyncio.CancelledError:
            if not disconnected or request.uncancel() > 0:
                raise
        finally:
            watcher.cancel()


def pool_of(scope: Scope, name: str = "pool") -> Pool:
    """Return the pool of this name in the state of the app that serves the request.

    If it is a cluster, its pool for writes is returned.

    The request is labelled, unless the app has set a label; see `LabelRequests`.

    Raises:
        LookupError: there is no such pool.
    """
    return write_of(kept_by(scope, name))


def cluster_of(scope: Scope, name: str = "cluster") -> Cluster[Any]:
    """Return the cluster of this name in the state of the app that serves the request.

    Raises:
        LookupError: there is no such cluster.
    """
    cluster = kept_by(scope, name, "cluster")
    if not isinstance(cluster, Cluster):
        msg = f"{name!r} in the app's state is no cluster: {cluster!r}"
        raise LookupError(msg)
    return cluster


def kept_by(scope: Scope, name: str, what: str = "pool") -> Pool | Cluster[Any]:
    """Return what the app keeps under this name, and label the request."""
    label(RequestLabel(scope), default=True)
    app = scope.get("litestar_app") or scope["app"]
    found: Pool | Cluster[Any] | None = getattr(app.state, name, None)
    if found is None:
        msg = (
            f"there is no {what} {name!r} in the app's state: pass it to the app's lifespan, and"
            " run the lifespan; a mounted app has a state of its own"
        )
        raise LookupError(msg)
    return found


async def transaction_of(scope: Scope, name: str = "pool") -> AsyncConnection[Any]:
    """Return the connection of the request's transaction, which `TransactionPerRequest` ends.

    Raises:
        LookupError: the app has no such middleware, or not for this pool.
        RuntimeError: the response has begun, so the transaction has ended.
        PoolTimeout: no connection was available in time.
    """
    block: LazyBlock | None = scope.get(BLOCKS, {}).get(name)
    if block is None:
        msg = f"TransactionPerRequest(name={name!r}) is not among the app's middleware"
        raise LookupError(msg)
    return await block.connection()
