"""The page as an ASGI app, for any framework that can mount one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from ._access import CHALLENGE, check_access
from ._assets import HEADERS, STREAM, asset
from ._feed import Feed
from ._sources import Given

# Each framework has types of its own for these mappings.
Scope = Any
Message = Any
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Verdict = bool | App | None
"""Whether a request is allowed, or the response to a request that is not."""


class Inspector:
    """A small read-only ASGI app: a page that shows pools live, and the feed that it reads.

    Task names, code locations and statement texts may be your secrets, so each request needs
    `authorize` or `basic_auth`. The page shows no password and no parameter of a statement.

    Args:
        pools: one pool or cluster, or several with different names, held weakly; or a callable that
            returns them, called for each snapshot. A cluster has a pool for writes, and one for
            each host.
        authorize: a plain or async function of the request's ASGI scope. The result `True` allows
            the request. A response, which is an ASGI app such as Starlette's `RedirectResponse`,
            is sent instead of the page. Anything else refuses with status 403.
        basic_auth: instead of `authorize`, a user and a password, which browsers ask for.
        interval: seconds from one snapshot to the next, from the first request on.

    Raises:
        TypeError: `authorize`, `basic_auth` or a pool has the wrong type, or neither or both of the
            former are given.
        ValueError: `interval` is not positive, the password or the user is empty, or two pools have
            the same name.
    """

    def __init__(
        self,
        pools: Given,
        *,
        authorize: Callable[[Scope], Verdict | Awaitable[Verdict]] | None = None,
        basic_auth: tuple[str, str] | None = None,
        interval: float = 1.0,
    ) -> None:
        self._basic_auth = check_access(authorize, basic_auth, "ASGI scope")
        self._authorize = authorize
        self._feed = Feed(pools, interval)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._allows(scope, receive, send):
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _respond(scope, send, 405, b"", "text/plain", more={"Allow": "GET, HEAD"})
            return
        path = _path_of(scope)
        if not path:
            # The page's links are relative, so its path must end with a slash.
            location = scope["path"].rpartition("/")[2] + "/"
            await _respond(scope, send, 307, b"", "text/plain", more={"Location": location})
        elif path == "/events":
            await self._stream(scope, receive, send)
        elif path == "/snapshot":
            body = (await self._feed.snapshot()).encode()
            await _respond(scope, send, 200, body, "application/json")
        elif path == "/server":
            body = (await self._feed.server()).encode()
            await _respond(scope, send, 200, body, "application/json")
        elif (found := asset(path)) is not None:
            await _respond(scope, send, 200, *found)
        else:
            await _respond(scope, send, 404, b"not found", "text/plain")

    async def _allows(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Return whether a request is allowed; one that is not is answered here."""
        if self._basic_auth is not None:
            if self._basic_auth.admits(_header(scope, b"authorization")):
                return True
            await _respond(scope, send, 401, b"unauthorized", "text/plain", more=CHALLENGE)
            return False
        assert self._authorize is not None, "check_access has checked that"
        verdict = self._authorize(scope)
        if isawaitable(verdict):
            verdict = await verdict
        if verdict is True:
            return True
        if callable(verdict):
            await verdict(scope, receive, send)
        else:
            await _respond(scope, send, 403, b"forbidden", "text/plain")
        return False

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_start(200, STREAM))
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        disconnected = asyncio.create_task(_wait_for_disconnect(receive))
        stream = self._feed.stream()
        try:
            while not disconnected.done():
                pending = asyncio.create_task(stream.next())
                try:
                    await asyncio.wait({disconnected, pending}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    event = pending.result() if pending.done() else None
                    pending.cancel()
                if event is None:
                    break
                body = event.encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            disconnected.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _header(scope: Scope, name: bytes) -> str:
    """Return the value of a header; empty if it is missing or there more than once."""
    found = [value for key, value in scope["headers"] if key.lower() == name]
    return found[0].decode("latin-1") if len(found) == 1 else ""


def _path_of(scope: Scope) -> str:
    """Return the part of the path below the app's mount point."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if root and (path + "/").startswith(root + "/") else path


def _start(status: int, headers: dict[str, str]) -> Message:
    pairs = [(name.lower().encode(), value.encode()) for name, value in (HEADERS | headers).items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


async def _respond(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    kind: str,
    *,
    more: dict[str, str] | None = None,
) -> None:
    headers = {"Content-Type": kind, "Content-Length": str(len(body))}
    await send(_start(status, headers | (more or {})))
    body = b"" if scope["method"] == "HEAD" else body
    await send({"type": "http.response.body", "body": body})
