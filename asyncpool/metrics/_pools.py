"""The pools that an exporter reads: held weakly, or asked of the app at each reading."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from asyncpool import AsyncConnectionPool, PoolStats

Pool = AsyncConnectionPool[Any]
Source = Pool | Callable[[], Pool | Iterable[Pool] | None]
"""A pool, or a callable that returns the app's pool, its pools, or None while it has none."""

logger = logging.getLogger("asyncpool")


class Pools:
    """The pools of some sources.

    Args:
        sources: pools and callables.

    Raises:
        TypeError: a source is neither.
        ValueError: two pools have the same name.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._pools: list[weakref.ref[Pool]] = []
        self._callables: list[Callable[[], Pool | Iterable[Pool] | None]] = []
        self._reported: set[str] = set()
        """The names of which the log has a warning."""
        for source in sources:
            self.add(source)

    def add(self, source: Source) -> None:
        """Add a source; see the class."""
        if not isinstance(source, AsyncConnectionPool):
            if not callable(source):
                msg = (
                    "only an AsyncConnectionPool, or a callable that returns one, has these"
                    f" metrics: got {source!r}"
                )
                raise TypeError(msg)
            self._callables.append(source)
            return
        others = (each() for each in self._pools)
        if any(each.name == source.name for each in others if each not in (source, None)):
            msg = f"two pools are named {source.name!r}: give each a name= of its own"
            raise ValueError(msg)
        self.remove(source)
        self._pools.append(weakref.ref(source))

    def remove(self, source: Source) -> None:
        """Remove a source; one that is not there does nothing."""
        self._pools = [each for each in self._pools if each() not in (source, None)]
        self._callables = [each for each in self._callables if each != source]

    def stats(self) -> dict[str, PoolStats]:
        """Return a snapshot of each open pool by its name; of two of one name, the first."""
        found: dict[str, Pool] = {}
        for pool in self._all():
            if found.setdefault(pool.name, pool) is not pool and pool.name not in self._reported:
                self._reported.add(pool.name)
                logger.warning(
                    "two open pools are named %r: only the first one's metrics are exported; give"
                    " each a name= of its own",
                    pool.name,
                )
        return {name: pool.stats() for name, pool in found.items()}

    def _all(self) -> list[Pool]:
        pools = [each() for each in self._pools]
        for source in list(self._callables):
            given = source()
            pools += [given] if given is None or isinstance(given, AsyncConnectionPool) else given
        return [pool for pool in pools if pool is not None and not pool.closed]
