"""The pools of an inspector: given as they are, and held weakly, or by a callable."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from asyncpool import AsyncConnectionPool

Pool = AsyncConnectionPool[Any]
Pools = Pool | Iterable[Pool]
Given = Pools | Callable[[], Pools]


class Sources:
    """The pools of an inspector.

    Raises:
        TypeError: an argument is no pool, or there are no pools.
        ValueError: two pools have the same name.
    """

    def __init__(self, given: Given) -> None:
        self._call: Callable[[], Pools] | None = None
        self._pools: list[weakref.ref[Pool]] = []
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
        self._pools = [weakref.ref(pool) for pool in found]

    def current(self) -> dict[str, Pool]:
        """Return the pools that exist now by their names.

        Of several pools with one name, which only a callable can return, all but the first get a
        number.

        Raises:
            TypeError: the callable returned something else than pools.
        """
        if self._call is None:
            alive = [pool for each in self._pools if (pool := each()) is not None]
        else:
            alive = _listed(self._call())
        seen: Counter[str] = Counter()
        found = {}
        for pool in alive:
            seen[pool.name] += 1
            number = seen[pool.name]
            found[pool.name if number == 1 else f"{pool.name} ({number})"] = pool
        return found


def _listed(given: Pools) -> list[Pool]:
    try:
        found = [given] if isinstance(given, AsyncConnectionPool) else list(given)
    except TypeError:
        raise TypeError(_wrong(given)) from None
    if not all(isinstance(each, AsyncConnectionPool) for each in found):
        raise TypeError(_wrong(given))
    return found


def _wrong(given: object) -> str:
    return (
        "an inspector takes one AsyncConnectionPool or several, or a callable that returns them:"
        f" got {given!r}"
    )
