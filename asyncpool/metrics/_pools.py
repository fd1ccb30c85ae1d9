"""The pools, clusters and fleets that an exporter reads: held weakly, or asked of the app."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from asyncpool import AsyncConnectionPool, Cluster, Fleet, FleetStats, HostStatus, PoolStats

Pool = AsyncConnectionPool[Any]
Given = Pool | Cluster[Any] | Fleet
Source = Given | Callable[[], Given | Iterable[Given] | None]
"""One of these, or a callable that returns the app's, several, or None while it has none."""

T = TypeVar("T", Pool, Cluster[Any], Fleet)

KINDS = {AsyncConnectionPool: "pool", Cluster: "cluster", Fleet: "fleet"}

logger = logging.getLogger("asyncpool")


class Pools:
    """The pools of some sources; those of a cluster are its pool for writes and one for each host.

    Args:
        sources: pools, clusters, fleets and callables.

    Raises:
        TypeError: a source is none of these.
        ValueError: two of them of one kind have the same name.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._given: list[weakref.ref[Given]] = []
        self._callables: list[Callable[[], Given | Iterable[Given] | None]] = []
        self._reported: set[str] = set()
        """The names that were reported as being in use twice."""
        for source in sources:
            self.add(source)

    def add(self, source: Source) -> None:
        """Add a source; see the class."""
        if not isinstance(source, AsyncConnectionPool | Cluster | Fleet):
            if not callable(source):
                msg = (
                    "only an AsyncConnectionPool, a Cluster or a Fleet, or a callable that returns"
                    f" one, has these metrics: got {source!r}"
                )
                raise TypeError(msg)
            self._callables.append(source)
            return
        kind = kind_of(source)
        others = [other for each in self._given if (other := each()) is not None]
        if any(
            each.name == source.name and kind_of(each) == kind and each is not source
            for each in others
        ):
            msg = f"two {kind}s are named {source.name!r}: give each a name= of its own"
            raise ValueError(msg)
        self.remove(source)
        self._given.append(weakref.ref(source))

    def remove(self, source: Source) -> None:
        """Remove a source."""
        self._given = [each for each in self._given if each() not in (source, None)]
        self._callables = [each for each in self._callables if each is not source]

    def stats(self) -> dict[str, PoolStats]:
        """Return a snapshot of each open pool by its name; of two of one name, the first."""
        found = self._by_name(pool for each in self._all() for pool in pools_of(each))
        return {name: pool.stats() for name, pool in found.items()}

    def hosts(self) -> dict[str, tuple[HostStatus, ...]]:
        """Return the hosts of each open cluster by its name; of two of one name, the first's."""
        clusters = (each for each in self._all() if isinstance(each, Cluster) and not each.closed)
        return {name: each.hosts() for name, each in self._by_name(clusters).items()}

    def fleets(self) -> dict[str, FleetStats]:
        """Return a snapshot of each fleet by its name; of two of one name, the first."""
        found = self._by_name(each for each in self._all() if isinstance(each, Fleet))
        return {name: fleet.stats() for name, fleet in found.items()}

    def _by_name(self, given: Iterable[T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for each in given:
            name, kind = each.name, kind_of(each)
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
            if given is None or isinstance(given, AsyncConnectionPool | Cluster | Fleet):
                found.append(given)
            else:
                found += given
        return [each for each in found if each is not None]


def kind_of(given: Given) -> str:
    """Return what it is: "pool", "cluster" or "fleet"."""
    return next(kind for its_class, kind in KINDS.items() if isinstance(given, its_class))


def pools_of(given: Given) -> list[Pool]:
    """Return the open pools of a pool or cluster; a fleet has none of its own."""
    if isinstance(given, Fleet):
        return []
    pools = given.pools if isinstance(given, Cluster) else (given,)
    return [pool for pool in pools if not pool.closed]
