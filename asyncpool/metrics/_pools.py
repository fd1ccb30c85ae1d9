"""The pools and fleets that an exporter reads: held weakly, or asked of the app at each reading."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from asyncpool import AsyncConnectionPool, Fleet, FleetStats, PoolStats

Pool = AsyncConnectionPool[Any]
Given = Pool | Fleet
Source = Given | Callable[[], Given | Iterable[Given] | None]
"""A pool, a fleet, or a callable that returns one, several, or None while the app has none."""

T = TypeVar("T", Pool, Fleet)

logger = logging.getLogger("asyncpool")


class Pools:
    """The pools and fleets of some sources.

    Args:
        sources: pools, fleets and callables.

    Raises:
        TypeError: a source is neither.
        ValueError: two pools, or two fleets, have the same name.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._given: list[weakref.ref[Given]] = []
        self._callables: list[Callable[[], Given | Iterable[Given] | None]] = []
        self._reported: set[str] = set()
        """The names of which the log has a warning."""
        for source in sources:
            self.add(source)

    def add(self, source: Source) -> None:
        """Add a source; see the class."""
        if not isinstance(source, AsyncConnectionPool | Fleet):
            if not callable(source):
                msg = (
                    "only an AsyncConnectionPool or a Fleet, or a callable that returns one, has"
                    f" these metrics: got {source!r}"
                )
                raise TypeError(msg)
            self._callables.append(source)
            return
        kind = _kind(source)
        others = [other for each in self._given if (other := each()) not in (source, None)]
        if any(_kind(other) == kind and other.name == source.name for other in others if other):
            msg = f"two {kind}s are named {source.name!r}: give each a name= of its own"
            raise ValueError(msg)
        self.remove(source)
        self._given.append(weakref.ref(source))

    def remove(self, source: Source) -> None:
        """Remove a source; one that is not there does nothing."""
        self._given = [each for each in self._given if each() not in (source, None)]
        self._callables = [each for each in self._callables if each != source]

    def stats(self) -> dict[str, PoolStats]:
        """Return a snapshot of each open pool by its name; of two of one name, the first."""
        pools = (each for each in self._all() if isinstance(each, AsyncConnectionPool))
        found = self._by_name(pool for pool in pools if not pool.closed)
        return {name: pool.stats() for name, pool in found.items()}

    def fleets(self) -> dict[str, FleetStats]:
        """Return a snapshot of each fleet by its name; of two of one name, the first."""
        found = self._by_name(each for each in self._all() if isinstance(each, Fleet))
        return {name: fleet.stats() for name, fleet in found.items()}

    def _by_name(self, given: Iterable[T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for each in given:
            name, kind = each.name, _kind(each)
            if found.setdefault(name, each) is not each and f"{kind} {name}" not in self._reported:
                self._reported.add(f"{kind} {name}")
                logger.warning(
                    "two open %ss are named %r: only the first one's metrics are exported; give"
                    " each a name= of its own",
                    kind,
                    name,
                )
        return found

    def _all(self) -> list[Given]:
        found: list[Given | None] = [each() for each in self._given]
        for source in list(self._callables):
            given = source()
            if given is None or isinstance(given, AsyncConnectionPool | Fleet):
                found.append(given)
            else:
                found += given
        return [each for each in found if each is not None]


def _kind(given: Given) -> str:
    return "fleet" if isinstance(given, Fleet) else "pool"
