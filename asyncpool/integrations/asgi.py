"""Middleware for any ASGI framework: a transaction a request, and an end to work for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from psycopg import AsyncConnection

from ._shared import Pool, Work, check_status

__all__ = ["CancelOnDisconnect", "TransactionPerRequest", "pool_of", "transaction_of"]

# Each framework has types of its own for these mappings.
Scope = Any
Message = Any
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WORKS = "asyncpool.transactions"


class TransactionPerRequest:
    """One transaction for all that a request does, at an end before its response begins.

    It is begun by the first `transaction_of`. It is committed before the response's first byte, so
    that a client is told of nothing that the commit then denies. It is rolled back when the app
    raises, when the response's status is `roll_back_from` or higher, and when there is no response.

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
        work = Work(
            lambda: pool_of(scope, self.name).transaction(self.timeout), self.roll_back_from
        )
        scope[WORKS] = {**scope.get(WORKS, {}), self.name: work}

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                await work.answer(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, respond)
        except BaseException as error:
            await work.end(error)
            raise
        await work.answer(600)  # where a response was sent, it is over already


class CancelOnDisconnect:
    """Cancels a request whose client has hung up, which no ASGI server does by itself.

    The pool does the rest: the query is cancelled on the server, and the connection is free again.
    It goes around all other middleware.
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
        hung_up = False

        async def listen() -> None:
            nonlocal hung_up
            while (message := await receive())["type"] != "http.disconnect":
                await body.put(message)
            hung_up = True
            request.cancel()

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                listener.cancel()  # what follows, such as background tasks, is to be finished
            await send(message)

        listener = asyncio.create_task(listen())
        try:
            await self.app(scope, body.get, respond)
        except asyncio.CancelledError:
            if not hung_up or request.uncancel() > 0:
                raise
        finally:
            listener.cancel()


def pool_of(scope: Scope, name: str = "pool") -> Pool:
    """The pool of this name in the state of the app that serves a request.

    Raises:
        LookupError: there is none.
    """
    app = scope.get("litestar_app") or scope["app"]
    pool: Pool | None = getattr(app.state, name, None)
    if pool is None:
        msg = (
            f"there is no pool {name!r} in the app's state: give it to the app's lifespan, and run"
            " that; an app that is mounted has a state of its own"
        )
        raise LookupError(msg)
    return pool


async def transaction_of(scope: Scope, name: str = "pool") -> AsyncConnection[Any]:
    """The connection of the request's transaction, which `TransactionPerRequest` ends.

    Raises:
        LookupError: that middleware is not around this app, or not for this pool.
        RuntimeError: the response has begun, and with it the transaction has ended.
        PoolTimeout: there was no connection in time.
    """
    work: Work | None = scope.get(WORKS, {}).get(name)
    if work is None:
        msg = f"TransactionPerRequest(name={name!r}) is not among the app's middleware"
        raise LookupError(msg)
    return await work.connection()
