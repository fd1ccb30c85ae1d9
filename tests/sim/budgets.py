"""The laws of a budget: what holds between any two turns for all pools that share one."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from asyncpool import Budget
from asyncpool._core.outage_controller import CANCELLED_PAUSE

if TYPE_CHECKING:
    from tests.sim.laws import Laws


class BudgetLaws:
    """Checks the laws on the pools of one budget.

    Args:
        budget: the budget.
        pools: the pools that share it.
        broken: called with the law that does not hold; raises.
    """

    def __init__(self, budget: Budget, pools: list[Laws], broken: Callable[[str], None]) -> None:
        self.budget = budget
        self._pools = pools
        self._broken = broken
        for laws in pools:
            self._observe_queue(laws)

    def check(self) -> None:
        """Check the limit; no request waits for room while there is room or an idle connection."""
        entries = sum(len(laws.core.ledger.entries) for laws in self._pools)
        sockets = sum(laws.driver.sockets - laws.driver.deaf for laws in self._pools)
        if self.budget.size != entries:
            self._broken(f"{self.budget}: there are {entries} entries")
        if max(sockets, entries) > self.budget.max_connections:
            self._broken(f"{self.budget}: there are {sockets} sockets, {entries} entries")
        short = list(islice(self._claims(), max(0, self._expected_room) + 1))
        if not short:
            return
        if any(_pauses(laws) for laws in self._pools):
            return
        if self.budget.size < self.budget.max_connections:
            self._broken(f"{self.budget}: a request waits although there is room")
        resting = any(laws.core.ledger.idle for laws in self._pools)
        if resting and len(short) > self._expected_room:
            self._broken(f"{self.budget}: a request waits for room that an idle connection uses")

    @property
    def _expected_room(self) -> int:
        closing = sum(laws.core.ledger.closing for laws in self._pools)
        return self.budget.max_connections - self.budget.size + closing

    def _claims(self) -> Iterator[tuple[float, int]]:
        """Return the arrivals of the requests that wait for room, in order, each with its pool."""
        found = [self._claims_of(laws, number) for number, laws in enumerate(self._pools)]
        return heapq.merge(*found)

    def _claims_of(self, laws: Laws, number: int) -> Iterator[tuple[float, int]]:
        core = laws.core
        ledger = core.ledger
        if core.closed or core.outages.outage:
            return iter(())
        covered = max(0, ledger.opening - ledger.late)
        most = max(0, min(ledger.settings.max_size - ledger.size, ledger.at_once - ledger.opening))
        waiting = sorted((laws.arrived_at(each), number) for each in ledger.queue)
        return islice(waiting[covered:], most)

    def _observe_queue(self, laws: Laws) -> None:
        queue = laws.core.ledger.queue
        serve = queue.serve

        def served(item: Any) -> bool:
            # A pool's own priorities decide who has its turn; its first request, when that comes.
            first = min((laws.arrived_at(each) for each in queue), default=None)
            if first is not None:
                others = (
                    when for when, number in self._claims() if self._pools[number] is not laws
                )
                earlier = sum(1 for when in others if when < first)
                pausing = any(_pauses(laws) for laws in self._pools)
                if earlier > self._expected_room and not pausing:
                    self._broken(
                        f"{self.budget}: {earlier} were overtaken by another pool's request"
                    )
            return serve(item)

        queue.serve = served  # type: ignore[method-assign]


def _pauses(laws: Laws) -> bool:
    """Return whether a pool retries in a moment, as after a connect that was cancelled."""
    return laws.core.outages.retry.at <= laws.loop.time() + CANCELLED_PAUSE
