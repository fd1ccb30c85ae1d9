"""psycopg's `connect`, with less CPU time, for `asyncpool.Connection`.

psycopg parses the connection string twice for each connect, sets a timer for each wait for the
server, and waits for the event loop even where it may send at once. What runs here is psycopg's own
function, with its attempts and errors; a copy of it finds other names for the parser and the wait
than those of its module. What was parsed is kept by the pool, so a connect without a pool parses
anew.
"""

from __future__ import annotations

import select
import sys
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGenConn
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool._psycopg.internals import READY_R, READY_W, SUPPORTED, WAIT_R, WAIT_W
from asyncpool._psycopg.transport import Transport

RV = TypeVar("RV")

KEPT = 16
"""Results that are kept at most; a connect to several addresses has one for each."""
PLAIN = {str, int, float, bool, type(None)}
"""The types of values whose text never changes."""
USED = {"make_conninfo", "waiting", "wait_conn_async", "_WaitTimeout"}
"""Names that `AsyncConnection.connect` must use to be copied. psycopg before 3.3.6 does not use the
last one, because its wait has no time limit of its own."""

Parsed = dict[tuple[Any, ...], Any]
"""Results of psycopg's `conninfo_to_dict` and `make_conninfo`, by function and arguments."""

parsed: ContextVar[Parsed | None] = ContextVar("asyncpool_parsed", default=None)
"""The results that are kept by the pool which connects in this context; None outside of a pool."""


async def connect(
    method: Callable[..., Coroutine[Any, Any, RV]], conninfo: str, kwargs: dict[str, Any]
) -> RV:
    """Call `AsyncConnection.connect`, bound to a class; one that was patched is called as it is."""
    if COPY is not None and type(method) is MethodType and method.__func__ is CONNECT:
        connected: RV = await COPY(method.__self__, conninfo, **kwargs)
        return connected
    return await method(conninfo, **kwargs)


async def parameters(
    method: Callable[..., Coroutine[Any, Any, dict[str, Any]]],
    conninfo: str,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Call `AsyncConnection._get_connection_params`, unless what it would return is kept."""
    if COPY is not None and type(method) is MethodType and method.__func__ is PARAMETERS:
        return dict(_keep(conninfo_to_dict, conninfo, kwargs))
    return await method(conninfo, **kwargs)


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
    loop, timer, future, ready, is_late = get_running_loop(), None, None, 0, False

    def wake(state: int) -> None:
        nonlocal ready, is_late
        ready |= state
        is_late |= not state
        if future is not None and not future.done():
            future.set_result(None)

    try:
        fileno, wanted = next(gen)
        if timeout is not None:
            timer = loop.call_later(timeout, wake, 0)
        while True:
            if wanted == WAIT_W and _is_writable(fileno):
                ready = READY_W
            else:
                future, ready = loop.create_future(), 0
                # Anew for each wait: libpq may have another socket by now, of the same number.
                _watch(loop, fileno, wanted, wake)
                try:
                    await future
                finally:
                    _stop_watching(loop, fileno, wanted)
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
        gen.close()  # closes the socket of one that failed; a cycle may keep this frame
        future = None
        if timer is not None:
            timer.cancel()


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


def _is_writable(fileno: int) -> bool:
    """Whether a socket can be written to, or has an error; one that still connects cannot."""
    poll = select.poll()
    poll.register(fileno, select.POLLOUT)
    return bool(poll.poll(0))


def _watch(
    loop: AbstractEventLoop, fileno: int, wanted: int, wake: Callable[[int], object]
) -> None:
    if wanted & WAIT_R:
        loop.add_reader(fileno, wake, READY_R)
    if wanted & WAIT_W:
        loop.add_writer(fileno, wake, READY_W)


def _stop_watching(loop: AbstractEventLoop, fileno: int, wanted: int) -> None:
    if wanted & WAIT_R:
        loop.remove_reader(fileno)
    if wanted & WAIT_W:
        loop.remove_writer(fileno)


def _keep(function: Callable[..., Any], conninfo: str, kwargs: dict[str, Any]) -> Any:
    """Call a function of psycopg's, or return what it has returned for the same arguments."""
    kept = parsed.get()
    types = tuple(map(type, kwargs.values()))
    if kept is None or not PLAIN.issuperset(types):
        return function(conninfo, **kwargs)
    key = function, conninfo, types, *kwargs.items()
    if key not in kept:
        if len(kept) >= KEPT:
            kept.clear()
        kept[key] = function(conninfo, **kwargs)
    return kept[key]


def _copy_of(original: Any) -> Callable[..., Coroutine[Any, Any, Any]] | None:
    """Return the copy of psycopg's `connect`; None if that is not as expected."""
    if not SUPPORTED or sys.platform == "win32" or type(original) is not FunctionType:
        return None
    if not set(original.__code__.co_names) >= USED:
        return None
    names = {
        "make_conninfo": lambda conninfo, **kwargs: _keep(make_conninfo, conninfo, kwargs),
        "waiting": SimpleNamespace(wait_conn_async=wait_until_connected),
    }
    found = original.__globals__ | names, original.__name__, original.__defaults__
    copy = FunctionType(original.__code__, *found, original.__closure__)
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy


def _only_parser(method: Any) -> Any:
    """Return the function of a method that calls psycopg's parser and no more; else None."""
    function = getattr(method, "__func__", None)
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    return function if names == ("conninfo_to_dict",) else None


CONNECT = getattr(psycopg.AsyncConnection.connect, "__func__", None)
PARAMETERS = _only_parser(getattr(psycopg.AsyncConnection, "_get_connection_params", None))
"""psycopg's method of this name, if it only parses."""
COPY = _copy_of(CONNECT)
