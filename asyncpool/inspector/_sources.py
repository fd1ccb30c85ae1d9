"""The pools of an inspector: given as they are, and held weakly, or by a callable."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from asyncpool import AsyncConnectionPool, Cluster

Pool = AsyncConnectionPool[Any]
One = Pool | Cluster[Any]
Pools = One | Iterable[One]
Given = Pools | Callable[[], Pools]
FACTS = ("name", "role", "reachable", "takes_reads", "reason", "drained", "under_way", "reads")
"""What the page shows of a host, beside its lag."""


class Sources:
    """The pools of an inspector; those of a cluster are its pool for writes and one for each host.

    Raises:
        TypeError: an argument is neither a pool nor a cluster, or there are none.
        ValueError: two pools or two clusters have the same name.
    """

    def __init__(self, given: Given) -> None:
        self._call: Callable[[], Pools] | None = None
        self._given: list[weakref.ref[One]] = []
        if callable(given):
            self._call = given
            return
        found = _listed(given)
        names = [each.name for each in found]
        if not found:
            raise TypeError(_wrong(given))
        if len(set(names)) < len(names):
            msg = f"two pools of an inspector have the same name: got {names}; give each a name="
            raise ValueError(msg)
        self._given = [weakref.ref(each) for each in found]

    def current(self) -> dict[str, Pool]:
        """Return the pools that exist now by their names.

        Of several pools with one name, which only a callable can return, all but the first get a
        number.

        Raises:
            TypeError: the callable returned something else than pools and clusters.
        """
        seen: Counter[str] = Counter()
        found = {}
        for one in self._alive():
            for pool in one.pools if isinstance(one, Cluster) else (one,):
                seen[pool.name] += 1
                number = seen[pool.name]
                found[pool.name if number == 1 else f"{pool.name} ({number})"] = pool
        return found

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Return what is known of the host of each pool that a cluster has for one, by its name."""
        found = {}
        for one in self._alive():
            for host in one.hosts() if isinstance(one, Cluster) else ():
                facts = {name: getattr(host, name) for name in FACTS}
                lag = None if host.lag == math.inf else host.lag
                found[host.stats.name] = {"cluster": one.name, **facts, "lag": lag}
        return found

    def _alive(self) -> list[One]:
        if self._call is not None:
            return _listed(self._call())
        return [one for each in self._given if (one := each()) is not None]


def _listed(given: Pools) -> list[One]:
    try:
        found = [given] if isinstance(given, (AsyncConnectionPool, Cluster)) else list(given)
    except TypeError:
        raise TypeError(_wrong(given)) from None
    if not all(isinstance(each, (AsyncConnectionPool, Cluster)) for each in found):
        raise TypeError(_wrong(given))
    return found


def _wrong(given: object) -> str:
    return (
        "an inspector takes one AsyncConnectionPool or Cluster, or several, or a callable that"
        f" returns them: got {given!r}"
    )
