"""The pools as psycopg_pool's own classes, for libraries that are written for psycopg_pool.

The classes are derived from psycopg_pool's too, so that `isinstance` holds, and their errors from
both libraries' errors. Nothing of psycopg_pool's code runs: what belongs to the way in which its
pool works raises `AttributeError`. This module needs psycopg_pool; no other module imports it.
"""

from __future__ import annotations

import functools
import types
import weakref
from typing import Any, ClassVar, NoReturn

try:
    import psycopg_pool
except ImportError as error:
    _msg = f"asyncpool.compat needs psycopg_pool ({error}): pip install psycopg_pool"
    raise ImportError(_msg, name="psycopg_pool") from error

from asyncpool import errors, null_pool, pool
from asyncpool._blocks.connection_block import ConnectionBlock
from asyncpool._blocks.other_loop import OtherLoopBlock, is_on_another_loop
from asyncpool._core.error_factory import ErrorClasses
from asyncpool._core.pool import Core
from asyncpool._psycopg.callbacks import resolve
from asyncpool._psycopg.driver import ACT

__all__ = [
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "PoolClosed",
    "PoolDeadlock",
    "PoolTimeout",
    "PoolUnavailable",
    "TooManyRequests",
    "install",
    "uninstall",
]

PLAIN = {"_check_size", "_jitter"}
"""Methods of psycopg_pool that need no state, and work here too."""
RESOLVERS = "_resolve_conninfo", "_resolve_kwargs"

_theirs = psycopg_pool.AsyncConnectionPool
_their_null_pool = psycopg_pool.AsyncNullConnectionPool
_their_init = _theirs.__init__
_absent: set[str] = set()
"""The methods of psycopg_pool's that raise here."""


_derived: dict[type, type] = {}
"""By class that a library has derived from psycopg_pool's: the one that is derived from it here."""


class PoolClosed(errors.PoolClosed, psycopg_pool.PoolClosed):
    """`asyncpool.PoolClosed` and `psycopg_pool.PoolClosed`."""


class PoolTimeout(errors.PoolTimeout, psycopg_pool.PoolTimeout):
    """`asyncpool.PoolTimeout` and `psycopg_pool.PoolTimeout`."""


class PoolUnavailable(PoolTimeout, errors.PoolUnavailable):
    """`asyncpool.PoolUnavailable` and `psycopg_pool.PoolTimeout`."""


class PoolDeadlock(PoolTimeout, errors.PoolDeadlock):
    """`asyncpool.PoolDeadlock` and `psycopg_pool.PoolTimeout`."""


class TooManyRequests(errors.TooManyRequests, psycopg_pool.TooManyRequests):
    """`asyncpool.TooManyRequests` and `psycopg_pool.TooManyRequests`."""


class _Absent:
    """A method of psycopg_pool's that this pool has no use for; reading it raises.

    Args:
        name: the method's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        msg = (
            f"{owner.__name__!r} has no {self._name!r}: it is part of how psycopg_pool works, and"
            " this pool works in another way; use the documented methods"
        )
        raise AttributeError(msg, name=self._name, obj=owner if instance is None else instance)


def _is_foreign(cls: type) -> bool:
    """Whether a class is neither this library's nor psycopg_pool's."""
    return cls.__module__.partition(".")[0] not in ("asyncpool", "psycopg_pool")


class AsyncConnectionPool(  # type: ignore[misc, override]
    pool.AsyncConnectionPool[ACT], psycopg_pool.AsyncConnectionPool[ACT]
):
    """An `asyncpool.AsyncConnectionPool` that is a `psycopg_pool.AsyncConnectionPool` too.

    Besides the documented members it has those on which libraries rely: `_resolve_conninfo()` and
    `_resolve_kwargs()`, which a subclass may override, and, to read, `_pool`, `_waiting`,
    `_nconns`, `_min_size`, `_max_size`, `_opened` and `_closed`.

    Raises:
        TypeError: also where a subclass overrides a method of psycopg_pool's that this pool never
            calls, such as `_connect`.
    """

    _error_classes: ClassVar[ErrorClasses] = ErrorClasses(
        closed=PoolClosed,
        timeout=PoolTimeout,
        unavailable=PoolUnavailable,
        deadlock=PoolDeadlock,
        too_many=TooManyRequests,
    )
    _sched_runner: ClassVar[None] = None  # type: ignore[misc]
    _workers: ClassVar[tuple[()]] = ()  # type: ignore[misc, assignment]
    """This pool has no scheduler and no workers."""

    _elsewhere: set[OtherLoopBlock[ACT]]
    """The blocks on other event loops that have a connection."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__:
            if _is_foreign(base) and (lost := sorted(_absent & vars(base).keys())):
                msg = (
                    f"{base.__qualname__} overrides {', '.join(lost)} of psycopg_pool, which this"
                    " pool never calls: override a documented method, or pass conninfo, kwargs,"
                    " configure, check or reset"
                )
                raise TypeError(msg)

    def _set_core(self, core: Core[ACT]) -> None:
        if any(getattr(type(self), name) is not _own_resolvers[name] for name in RESOLVERS):
            alive = weakref.ref(self)
            conninfo, kwargs = (functools.partial(_resolve_by, alive, name) for name in RESOLVERS)
            self._driver.resolvers = conninfo, kwargs
        self._elsewhere = set()
        super()._set_core(core)

    def connection(self, timeout: float | None = None) -> ConnectionBlock[ACT]:  # type: ignore[override]
        """Borrow a connection for a block; on another event loop than the pool's, open one for it.

        A library's synchronous methods may run on an event loop of their thread's. There the block
        has a connection of its own, beyond those of the pool, which is closed at its end. At most
        `max_size` blocks have one at a time.

        Args:
            timeout: seconds to wait for a connection; None: the pool's `timeout`.

        Raises:
            PoolTimeout, TooManyRequests, PoolClosed: on entry, as for any pool.
            PoolWrongLoop: on entry, if `max_size` blocks on other event loops have a connection.
            psycopg.OperationalError: on entry, if a connect for another event loop fails.
        """
        if is_on_another_loop(self._core):
            return OtherLoopBlock.of(self, timeout, self._elsewhere)
        return super().connection(timeout)

    async def _resolve_conninfo(self) -> str:
        """Return the connection string of the next connect."""
        given = self.conninfo
        return await resolve(given) if callable(given) else given

    async def _resolve_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of the next connect."""
        given = self.kwargs
        return dict((await resolve(given) if callable(given) else given) or {})

    @property
    def _pool(self) -> tuple[ACT, ...]:  # type: ignore[override]
        """The idle connections."""
        return tuple(entry.conn for entry in self._core.ledger.idle)

    @property
    def _waiting(self) -> tuple[object, ...]:  # type: ignore[override]
        """One object for each request that waits."""
        return tuple(self._core.ledger.queue)

    @property
    def _nconns(self) -> int:  # type: ignore[override]
        return self._core.ledger.size

    @property
    def _min_size(self) -> int:  # type: ignore[override]
        return self.min_size

    @property
    def _max_size(self) -> int:  # type: ignore[override]
        return self.max_size

    @property
    def _opened(self) -> bool:  # type: ignore[override]
        return self._core.home is not None

    @property
    def _closed(self) -> bool:  # type: ignore[override]
        return self.closed


class AsyncNullConnectionPool(  # type: ignore[misc, override]
    null_pool.AsyncNullConnectionPool[ACT],
    AsyncConnectionPool[ACT],
    psycopg_pool.AsyncNullConnectionPool[ACT],
):
    """An `asyncpool.AsyncNullConnectionPool` that is psycopg_pool's too; see the pool above."""


def install() -> None:
    """Use these pools wherever the program makes a psycopg_pool pool for asyncio.

    It also works for code that has imported psycopg_pool's classes, or has derived classes from
    them, before or after this call. Pools that exist already stay what they are, and so do pools
    for threads.
    """
    _theirs.__new__ = staticmethod(_make)  # type: ignore[method-assign]
    _theirs.__init__ = _init  # type: ignore[method-assign]
    psycopg_pool.AsyncConnectionPool = AsyncConnectionPool  # type: ignore[misc]
    psycopg_pool.AsyncNullConnectionPool = AsyncNullConnectionPool  # type: ignore[misc]


def uninstall() -> None:
    """Undo `install`: new pools are psycopg_pool's own again."""
    psycopg_pool.AsyncConnectionPool = _theirs  # type: ignore[misc]
    psycopg_pool.AsyncNullConnectionPool = _their_null_pool  # type: ignore[misc]
    _theirs.__init__ = _their_init  # type: ignore[method-assign]
    _theirs.__new__ = staticmethod(_make_theirs)  # type: ignore[method-assign]


@functools.wraps(_their_init)
def _make(cls: type, *_args: Any, **_kwargs: Any) -> Any:
    """Make an object of the class of this module that stands for a class of psycopg_pool's."""
    own = AsyncNullConnectionPool if issubclass(cls, _their_null_pool) else AsyncConnectionPool
    if cls in (_theirs, _their_null_pool):
        cls = own
    elif not issubclass(cls, own):
        if cls not in _derived:
            _derived[cls] = _derive(cls, own)
        cls = _derived[cls]
    return object.__new__(cls)


def _make_theirs(cls: type, *_args: Any, **_kwargs: Any) -> Any:
    # `del _theirs.__new__` would leave a class that takes no arguments.
    return object.__new__(cls)


@functools.wraps(_their_init)
def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    """Construct a pool for a subclass that calls psycopg_pool's `__init__` by its class."""
    if isinstance(self, AsyncConnectionPool):
        AsyncConnectionPool.__init__(self, *args, **kwargs)
    else:
        _their_init(self, *args, **kwargs)


def _derive(cls: type, own: type) -> type:
    """Return a class that is like a library's own subclass, but stands on a class of ours."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return types.new_class(cls.__name__, (cls, own), exec_body=lambda body: body.update(names))


async def _resolve_by(alive: weakref.ref[AsyncConnectionPool[Any]], name: str) -> Any:
    return await getattr(alive(), name)()


def _hide(own: type) -> set[str]:
    """Make the methods that a class only inherits from psycopg_pool raise; return their names."""
    names = set()
    for name in dir(own):
        home = next(cls for cls in own.__mro__ if name in vars(cls))
        is_theirs = home.__module__.partition(".")[0] == "psycopg_pool"
        if is_theirs and callable(getattr(own, name)) and not name.startswith("__"):
            names.add(name)
    names -= PLAIN
    for name in names:
        setattr(own, name, _Absent(name))
    return names


AsyncConnectionPool._originals = pool.AsyncConnectionPool._originals | {
    "connection": AsyncConnectionPool.connection
}
_own_resolvers = {name: getattr(AsyncConnectionPool, name) for name in RESOLVERS}
_absent |= _hide(AsyncConnectionPool) | _hide(AsyncNullConnectionPool)
