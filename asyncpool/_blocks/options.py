"""What a pool was told, under psycopg_pool's names: to be read, and to be set while it runs.

A value that makes no sense is refused when it is set, and nothing is changed then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from asyncpool._core.pool import Core
from asyncpool._psycopg.driver import Conninfo, Kwargs, PsycopgDriver, check_sources


class PoolOptions:
    """The attributes of a pool that say how it works."""

    _core: Core[Any]
    _driver: PsycopgDriver[Any]

    @property
    def name(self) -> str:
        """For messages and logs."""
        return self._core.settings.name

    @name.setter
    def name(self, name: str) -> None:
        self._change(name=name)

    @property
    def conninfo(self) -> Conninfo:
        """What connections are made from; set, it is taken for those that are opened from then on.

        `drain()` replaces the others.
        """
        return self._driver.conninfo

    @conninfo.setter
    def conninfo(self, conninfo: Conninfo) -> None:
        check_sources(conninfo, self.kwargs, self._driver.connection_class)
        self._driver.conninfo = conninfo

    @property
    def kwargs(self) -> Kwargs | None:
        """The keyword arguments that they are made with; set, as `conninfo`."""
        return self._driver.kwargs

    @kwargs.setter
    def kwargs(self, kwargs: Kwargs | None) -> None:
        check_sources(self.conninfo, kwargs, self._driver.connection_class)
        self._driver.kwargs = kwargs

    @property
    def min_size(self) -> int:
        """Connections that are kept open; `resize()` changes it."""
        return self._core.settings.min_size

    @property
    def max_size(self) -> int:
        """The most connections there may be, where 0 is no bound; `resize()` changes it."""
        return self._core.settings.bound

    @property
    def timeout(self) -> float:
        """Seconds that a request waits by default."""
        return self._core.settings.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._change(timeout=seconds)

    @property
    def max_waiting(self) -> int:
        """The most requests in the line; 0 is no limit."""
        return self._core.settings.max_waiting

    @max_waiting.setter
    def max_waiting(self, number: int) -> None:
        self._change(max_waiting=number)

    @property
    def max_lifetime(self) -> float:
        """Seconds after which a connection is replaced, of those opened from now on."""
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
        """Seconds of failing connects after which `reconnect_failed` is called."""
        return self._core.settings.reconnect_timeout

    @reconnect_timeout.setter
    def reconnect_timeout(self, seconds: float) -> None:
        self._change(reconnect_timeout=seconds)

    def _change(self, **numbers: Any) -> None:
        ledger = self._core.ledger
        ledger.settings = replace(ledger.settings, **numbers)
