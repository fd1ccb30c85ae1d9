"""psycopg's `connect`, with less CPU time, for `asyncpool.Connection`.

psycopg parses the connection string twice for each connect, and sets a timer for each wait for the
server. What runs here is psycopg's own function, with its attempts and errors; a copy of it finds
other names for the parser and the wait than those of its module.
"""

from __future__ import annotations

import sys
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine
from functools import lru_cache
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGenConn
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool._psycopg.internals import READY_R, READY_W, SUPPORTED, VERSION, WAIT_R, WAIT_W
from asyncpool._psycopg.transport import Transport

RV = TypeVar("RV")

KEPT = 16
"""Connection strings that are kept as they were parsed, the last ones used."""
USED = {"make_conninfo", "waiting", "wait_conn_async"}
"""The names by which psycopg's function finds what is replaced."""

parse = lru_cache(KEPT, typed=True)(conninfo_to_dict)
compose = lru_cache(KEPT, typed=True)(make_conninfo)


async def connect(
    method: Callable[..., Coroutine[Any, Any, RV]], conninfo: str, kwargs: dict[str, Any]
) -> RV:
    """Call `AsyncConnection.connect`, bound to a class; one that was patched is called as it is."""
    if COPY is not None and type(method) is MethodType and method.__func__ is ORIGINAL:
        connected: RV = await COPY(method.__self__, conninfo, **kwargs)
        return connected
    return await method(conninfo, **kwargs)


async def parameters(cls: type[Any], /, conninfo: str, **kwargs: Any) -> dict[str, Any]:
    """Return a connection's parameters, as psycopg's class method of this purpose does."""
    try:
        return dict(parse(conninfo, **kwargs))
    except TypeError:  # a value that cannot be hashed
        return dict(conninfo_to_dict(conninfo, **kwargs))


async def wait_until_connected(
    gen: PQGenConn[RV],
    interval: float = 0.0,
    timeout: float | None = None,
) -> RV:
    """Run the generator of a connect to its end, with one timer for all of its waits.

    Args:
        gen: yields a descriptor and what to wait for, and is sent what it is ready for.
        interval: ignored; psycopg looks at the time so often.
        timeout: seconds until `_WaitTimeout`; None: no limit.
    """
    loop, timer, future, is_late = get_running_loop(), None, None, False

    def wake(ready: int) -> None:
        nonlocal is_late
        is_late |= not ready
        if future is not None and not future.done():
            future.set_result(ready)

    try:
        fileno, wanted = next(gen)
        if timeout is not None:
            timer = loop.call_later(timeout, wake, 0)
        while True:
            future = loop.create_future()
            # Anew for each wait, because libpq may have another socket by now, of the same number.
            if wanted & WAIT_R:
                loop.add_reader(fileno, wake, READY_R)
            if wanted & WAIT_W:
                loop.add_writer(fileno, wake, READY_W)
            try:
                ready = await future
            finally:
                if wanted & WAIT_R:
                    loop.remove_reader(fileno)
                if wanted & WAIT_W:
                    loop.remove_writer(fileno)
            fileno, wanted = gen.send(ready)
            if is_late:
                raise errors._WaitTimeout
    except OSError as error:
        msg = "connection socket closed"
        raise psycopg.OperationalError(msg) from error
    except StopIteration as end:
        connected: RV = end.value
        return connected
    finally:
        future = None
        if timer is not None:
            timer.cancel()


def _copy_of(original: Any) -> Callable[..., Coroutine[Any, Any, Any]] | None:
    """Return the copy of psycopg's function; None if it is not as expected."""
    if not (SUPPORTED and VERSION >= (3, 3) and sys.platform != "win32"):
        return None
    if type(original) is not FunctionType or not set(original.__code__.co_names) >= USED:
        return None
    names = {
        "make_conninfo": _composed,
        "waiting": SimpleNamespace(wait_conn_async=wait_until_connected),
    }
    found = original.__globals__ | names, original.__name__, original.__defaults__
    copy = FunctionType(original.__code__, *found, original.__closure__)
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy


def _composed(conninfo: str, **kwargs: Any) -> str:
    try:
        return compose(conninfo, **kwargs)
    except TypeError:  # a value that cannot be hashed
        return make_conninfo(conninfo, **kwargs)


def transport_for(conn: Any) -> Transport | None:
    """Return what watches a connection's socket; None where the event loop cannot watch any.

    Raises:
        OSError: it cannot watch one more.
    """
    if sys.platform == "win32":
        return None
    try:
        return Transport(conn)
    except NotImplementedError:
        return None


ORIGINAL = psycopg.AsyncConnection.connect.__func__  # type: ignore[attr-defined]
COPY = _copy_of(ORIGINAL)
PARSES = COPY is not None
"""Whether `parameters` does what psycopg's method does."""
