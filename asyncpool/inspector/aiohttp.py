"""The page as an aiohttp application, to add to yours with `add_subapp`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable

from aiohttp import web

from ._access import CHALLENGE, check_access
from ._assets import HEADERS, STREAM, asset
from ._feed import Feed
from ._sources import Given

__all__ = ["application"]

Verdict = bool | web.StreamResponse | None
"""Whether a request is allowed, or the response to a request that is not."""


def application(
    pools: Given,
    *,
    authorize: Callable[[web.Request], Verdict | Awaitable[Verdict]] | None = None,
    basic_auth: tuple[str, str] | None = None,
    interval: float = 1.0,
) -> web.Application:
    """An application with the page and its feed: `app.add_subapp("/pool/", application(...))`.

    Args:
        pools: one pool or cluster, or several with different names, held weakly; or a callable that
            returns them, called for each snapshot. A cluster has a pool for writes, and one for
            each host.
        authorize: a plain or async function of the request. The result `True` allows the request;
            a response is sent instead of the page; anything else refuses with status 403.
        basic_auth: instead of `authorize`, a user and a password, which browsers ask for.
        interval: seconds from one snapshot to the next, from the first request on.

    Raises:
        TypeError: `authorize`, `basic_auth` or a pool has the wrong type, or neither or both of the
            former are given.
        ValueError: `interval` is not positive, the password or the user is empty, or two pools have
            the same name.
    """
    basic = check_access(authorize, basic_auth, "request")
    feed = Feed(pools, interval)

    async def refusal(request: web.Request) -> web.StreamResponse | None:
        """Return the response to a request that is not allowed."""
        if basic is not None:
            if basic.admits(request.headers.get("Authorization", "")):
                return None
            return web.Response(status=401, text="unauthorized", headers=HEADERS | CHALLENGE)
        assert authorize is not None, "check_access has checked that"
        verdict = authorize(request)
        if isawaitable(verdict):
            verdict = await verdict
        if verdict is True:
            return None
        if isinstance(verdict, web.HTTPException):
            raise verdict  # aiohttp warns of one that is returned
        if isinstance(verdict, web.StreamResponse):
            return verdict
        return web.Response(status=403, text="forbidden", headers=HEADERS)

    async def answer(request: web.Request) -> web.StreamResponse:
        if (refused := await refusal(request)) is not None:
            return refused
        path = "/" + request.match_info["path"]
        if path == "/events":
            return await _stream(request, feed)
        if path == "/snapshot":
            body, kind = (await feed.snapshot()).encode(), "application/json"
        elif path == "/server":
            body, kind = (await feed.server()).encode(), "application/json"
        elif (found := asset(path)) is not None:
            body, kind = found
        else:
            return web.Response(status=404, text="not found", headers=HEADERS)
        return web.Response(body=body, headers=HEADERS | {"Content-Type": kind})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


async def _stream(request: web.Request, feed: Feed) -> web.StreamResponse:
    response = web.StreamResponse(headers=HEADERS | STREAM)
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    stream = feed.stream()
    try:
        while (event := await stream.next()) is not None:
            await response.write(event.encode())
    except ConnectionError:
        pass  # the client has disconnected
    return response
