"""The pools and clusters that an exporter reads: held weakly, or asked of the app each time."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from asyncpool import AsyncConnectionPool, Cluster, HostStatus, PoolStats

Pool = AsyncConnectionPool[Any]
Given = Pool | Cluster[Any]
Source = Given | Callable[[], Given | Iterable[Given] | None]
"""A pool or cluster, or a callable that returns the app's, several, or None while it has none."""

logger = logging.getLogger("asyncpool")


class Pools:
    """The pools of some sources; those of a cluster are its pool for writes and one for each host.

    Args:
        sources: pools, clusters and callables.

    Raises:
        TypeError: a source is none of these.
        ValueError: two of them have the same name.
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
        if not isinstance(source, (AsyncConnectionPool, Cluster)):
            if not callable(source):
                msg = (
                    "only an AsyncConnectionPool or a Cluster, or a callable that returns one, has"
                    f" these metrics: got {source!r}"
                )
                raise TypeError(msg)
            self._callables.append(source)
            return
        kind = "clusters" if isinstance(source, Cluster) else "pools"
        others = (each() for each in self._given)
        if any(
            each.name == source.name and isinstance(each, Cluster) == (kind == "clusters")
            for each in others
            if each is not None and each is not source
        ):
            msg = f"two {kind} are named {source.name!r}: give each a name= of its own"
            raise ValueError(msg)
        self.remove(source)
        self._given.append(weakref.ref(source))

    def remove(self, source: Source) -> None:
        """Remove a source; one that is not there does nothing."""
        self._given = [each for each in self._given if each() not in (source, None)]
        self._callables = [each for each in self._callables if each != source]

    def stats(self) -> dict[str, PoolStats]:
        """Return a snapshot of each open pool by its name; of two of one name, the first."""
        found: dict[str, Pool] = {}
        for pool in pools_of(self._all()):
            if found.setdefault(pool.name, pool) is not pool and pool.name not in self._reported:
                self._reported.add(pool.name)
                logger.warning(
                    "two open pools are named %r: only the first one's metrics are exported; give"
                    " each a name= of its own",
                    pool.name,
                )
        return {name: pool.stats() for name, pool in found.items()}

    def hosts(self) -> dict[str, tuple[HostStatus, ...]]:
        """Return the hosts of each open cluster by its name; of two of one name, the first's."""
        found: dict[str, tuple[HostStatus, ...]] = {}
        for each in self._all():
            if isinstance(each, Cluster) and each.name not in found:
                found[each.name] = each.hosts()
        return found

    def _all(self) -> list[Given]:
        given: list[Given | None] = [each() for each in self._given]
        for source in list(self._callables):
            returned = source()
            if returned is None or isinstance(returned, (AsyncConnectionPool, Cluster)):
                given.append(returned)
            else:
                given += returned
        return [each for each in given if each is not None and not each.closed]


def pools_of(given: Iterable[Given]) -> list[Pool]:
    """Return the open pools among some pools and clusters."""
    found: list[Pool] = []
    for each in given:
        found += each.pools if isinstance(each, Cluster) else [each]
    return [pool for pool in found if not pool.closed]
