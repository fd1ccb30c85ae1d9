"""The pool's options as attributes with psycopg_pool's names; some can be set while it runs.

Setting an invalid value raises and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._psycopg.driver import PsycopgDriver
from asyncpool._psycopg.sources import Conninfo, Kwargs, check_sources


class PoolOptions:
    """The options of a pool as attributes."""

    _core: Core[Any]
    _driver: PsycopgDriver[Any]

    @property
    def name(self) -> str:
        """The pool's name in messages and logs."""
        return self._core.settings.name

    @name.setter
    def name(self, name: str) -> None:
        self._change(name=name)

    @property
    def conninfo(self) -> Conninfo:
        """The connection string, or the callable that returns it.

        A new value applies to connections that are opened from then on; `drain()` replaces the
        others.
        """
        return self._driver.conninfo

    @conninfo.setter
    def conninfo(self, conninfo: Conninfo) -> None:
        check_sources(conninfo, self.kwargs, self._driver.connection_class)
        self._driver.conninfo = conninfo

    @property
    def kwargs(self) -> Kwargs | None:
        """The keyword arguments of `connect()`; a new value applies as for `conninfo`."""
        return self._driver.kwargs

    @kwargs.setter
    def kwargs(self, kwargs: Kwargs | None) -> None:
        check_sources(self.conninfo, kwargs, self._driver.connection_class)
        self._driver.kwargs = kwargs

    @property
    def min_size(self) -> int:
        """The number of connections that are kept open; `resize()` changes it."""
        return self._core.settings.min_size

    @property
    def max_size(self) -> int:
        """The maximum number of connections, 0 for no limit; `resize()` changes it."""
        return self._core.settings.max_size_or_zero

    @property
    def timeout(self) -> float:
        """Seconds that a request waits for a connection by default."""
        return self._core.settings.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._change(timeout=seconds)

    @property
    def max_waiting(self) -> int:
        """The maximum number of requests in the wait queue; 0 for no limit."""
        return self._core.settings.max_waiting

    @max_waiting.setter
    def max_waiting(self, number: int) -> None:
        self._change(max_waiting=number)

    @property
    def overload(self) -> Literal["wait", "refuse"] | None:
        """Which requests are refused when they cannot be served in time."""
        return cast('Literal["wait", "refuse"] | None', self._core.settings.overload)

    @overload.setter
    def overload(self, mode: Literal["wait", "refuse"] | None) -> None:
        self._change(overload=mode)

    @property
    def max_lifetime(self) -> float:
        """Seconds after which a connection is replaced; a new value applies to new connections."""
        return self._core.settings.max_lifetime

    @max_lifetime.setter
    def max_lifetime(self, seconds: float) -> None:
        self._change(max_lifetime=seconds)

    @property
    def max_idle(self) -> float:
        """Seconds after which an idle connection above `min_size` is closed."""
        return self._core.settings.max_idle

    @max_idle.setter
    def max_idle(self, seconds: float) -> None:
        self._change(max_idle=seconds)

    @property
    def reconnect_timeout(self) -> float:
        """Seconds of failed connects after which `reconnect_failed` is called."""
        return self._core.settings.reconnect_timeout

    @reconnect_timeout.setter
    def reconnect_timeout(self, seconds: float) -> None:
        self._change(reconnect_timeout=seconds)

    def on_slow_wait(self, threshold: float, callback: Callable[[float], None] | None) -> None:
        """Set a callback for long waits for a connection, including waits that fail.

        The pool calls it right after the wait, in the task that waited. A pool has one callback: a
        new one replaces the old one.

        Args:
            threshold: seconds from which a wait is long.
            callback: a plain function that gets the seconds of the wait; None: no callback.

        Raises:
            TypeError, ValueError: an argument is invalid.
        """
        limit = duration("threshold", threshold)
        if callback is not None and not callable(callback):
            msg = f"callback must be callable or None: got {callback!r}"
            raise TypeError(msg)
        self._core.slow_wait = math.inf if callback is None else limit
        self._core.on_slow_wait = callback or (lambda _: None)

    def _change(self, **numbers: Any) -> None:
        self._core.change(**numbers)
