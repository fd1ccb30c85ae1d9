"""Which budget limits which of a cluster's pools."""

from __future__ import annotations

from collections.abc import Callable

from asyncpool._core.budget import Budget
from asyncpool.fleet import Fleet

Budgets = Budget | Callable[[str | None], Budget | None] | None
"""One for all pools, or a callable that returns one for a host's name, and for None: the writes."""


class BudgetChooser:
    """The budget of each pool.

    A `Fleet` reads one server's sessions, and so is for the pool of one host.

    Raises:
        TypeError: the budget is a `Fleet`, or neither a `Budget` nor a callable.
    """

    def __init__(self, given: Budgets) -> None:
        if isinstance(given, Fleet):
            msg = (
                "budget: a Fleet is for one server: pass a callable that makes one for each host,"
                f" such as lambda host: Fleet({given.name!r})"
            )
            raise TypeError(msg)
        if not (given is None or isinstance(given, Budget) or callable(given)):
            msg = f"budget must be an asyncpool.Budget or a callable, not {given!r}"
            raise TypeError(msg)
        self._given = given
        self._fleets: dict[int, tuple[Fleet, str | None]] = {}
        """Each fleet and its host by the fleet's identity; a host that is back may have its own."""

    def choose(self, host: str | None) -> Budget | None:
        """Return the budget of a host's pool; None for the pool of writes.

        Raises:
            ValueError: the callable returns the fleet of another host's pool.
        """
        given = self._given
        found = given if given is None or isinstance(given, Budget) else given(host)
        if isinstance(found, Fleet):
            _, other = self._fleets.setdefault(id(found), (found, host))
            if other != host:
                msg = (
                    f"budget: the callable has returned one Fleet for {other or 'writes'!r} and for"
                    f" {host or 'writes'!r}: make one for each"
                )
                raise ValueError(msg)
        return found
