"""Middleware for any ASGI framework: users read what they have written, from whichever replica."""

from __future__ import annotations

from typing import Any

from asyncpool import Cluster

from ._own_writes import COOKIE, MAX_AGE, TokenCarrier
from .asgi import App, Message, Receive, Scope, Send, cluster_of

__all__ = ["ReadOwnWrites"]


class ReadOwnWrites:
    """Middleware that runs each request in a context of `cluster.own_writes()`.

    The token of what a request has written goes to the client with the response, in a cookie or a
    header, if there is a later one than the request's. It comes back with the user's next requests,
    whichever process serves them, and their reads see what was written. A token from a client that
    is none is ignored. A client that makes one up has its own reads served by the primary, which it
    could have by writing.

    The token covers what was written before the response begins. What a stream, a background task
    or a websocket writes reaches no cookie, but is seen by its own later reads. A websocket's
    context begins with the token of its handshake. A response that a server makes of an exception,
    outside of this middleware, has no token. Put this middleware outside of
    `TransactionPerRequest`, which commits when the response begins.

    Args:
        app: the ASGI app.
        cluster: the cluster, or its name in the app's state.
        cookie: the name of the cookie, which is HttpOnly and SameSite=lax; None: no cookie.
        header: the name of a header of requests and responses, for clients without cookies; None:
            no header.
        max_age: seconds for which the client keeps the cookie.
        secure: whether the client sends the cookie over TLS only.
        timeout: seconds that the primary may take to give a token before the response begins. If it
            does not, the response has none, and a warning is logged.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """

    def __init__(
        self,
        app: App,
        cluster: str | Cluster[Any] = "cluster",
        *,
        cookie: str | None = COOKIE,
        header: str | None = None,
        max_age: int = MAX_AGE,
        secure: bool = False,
        timeout: float = 1.0,
    ) -> None:
        if not isinstance(cluster, str | Cluster):
            msg = f"cluster must be a Cluster, or its name in the app's state: got {cluster!r}"
            raise TypeError(msg)
        self.app = app
        self._cluster = cluster
        self._carrier = TokenCarrier(cookie, header, max_age, secure, timeout)
        self._header = (header or "").lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        cluster = self._cluster
        if isinstance(cluster, str):
            cluster = cluster_of(scope, cluster)
        own = self._carrier.began(cluster, _values(scope, b"cookie"), _values(scope, self._header))
        came = own.token

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = await self._carrier.headers_after(own, came)
                if added:
                    raw = [(name.lower().encode(), value.encode()) for name, value in added]
                    message = {**message, "headers": [*message.get("headers", ()), *raw]}
            await send(message)

        with own:
            await self.app(scope, receive, respond)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for each, value in scope["headers"] if each == name]
