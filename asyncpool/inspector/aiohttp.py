"""The page as an aiohttp application, to add to yours with `add_subapp`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable

from aiohttp import web

from ._feed import HEADERS, STREAM, Feed, Pool, asset

__all__ = ["application"]


def application(
    pools: Pool | Iterable[Pool],
    *,
    authorize: Callable[[web.Request], bool | Awaitable[bool]],
    interval: float = 1.0,
) -> web.Application:
    """An application with the page and its feed: `app.add_subapp("/pool/", application(...))`.

    Args:
        pools: one pool, or several with different names; held weakly.
        authorize: a plain or async function of the request; only the result `True` allows it.
        interval: seconds from one snapshot to the next, from the first request on.

    Raises:
        TypeError: `authorize` or a pool has the wrong type.
        ValueError: `interval` is not positive, or two pools have the same name.
    """
    if not callable(authorize):
        msg = f"authorize must be a function of the request: got {authorize!r}"
        raise TypeError(msg)
    if not interval > 0:
        msg = f"interval must be more than 0 seconds: got {interval!r}"
        raise ValueError(msg)
    feed = Feed(pools, interval)

    async def answer(request: web.Request) -> web.StreamResponse:
        allowed = authorize(request)
        if isawaitable(allowed):
            allowed = await allowed
        if allowed is not True:
            return web.Response(status=403, text="forbidden", headers=HEADERS)
        path = "/" + request.match_info["path"]
        if path == "/events":
            return await _stream(request, feed)
        if path == "/snapshot":
            body, kind = feed.snapshot().encode(), "application/json"
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
