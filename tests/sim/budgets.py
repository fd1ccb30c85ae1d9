"""The laws of a budget: what holds between any two turns for all the pools that share one."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from asyncpool import Budget
from asyncpool._core.wait_queue import Waiter

if TYPE_CHECKING:
    from tests.sim.laws import Laws


class BudgetLaws:
    """The laws, held against the pools of one budget.

    Args:
        budget: what they share.
        pools: those who share it.
        broken: is told what was broken; it raises.
    """

    def __init__(self, budget: Budget, pools: list[Laws], broken: Callable[[str], None]) -> None:
        self.budget = budget
        self._pools = pools
        self._broken = broken
        for laws in pools:
            self._listen_to_the_line(laws)

    def hold(self) -> None:
        """Never too many; nobody waits for room beside room, or beside what rests elsewhere."""
        entries = sum(len(laws.core.ledger.entries) for laws in self._pools)
        sockets = sum(laws.connector.sockets for laws in self._pools)
        if self.budget.size != entries:
            self._broken(f"{self.budget}: there are {entries} entries")
        if max(sockets, entries) > self.budget.max_connections:
            self._broken(f"{self.budget}: there are {sockets} sockets, {entries} entries")
        short = list(islice(self._claims(), max(0, self._expected_room) + 1))
        if not short:
            return
        if self.budget.size < self.budget.max_connections:
            self._broken(f"{self.budget}: somebody waits beside room")
        resting = any(laws.core.ledger.idle for laws in self._pools)
        if resting and len(short) > self._expected_room:
            self._broken(f"{self.budget}: somebody waits for room that an idle connection has")

    @property
    def _expected_room(self) -> int:
        closing = sum(laws.core.ledger.closing for laws in self._pools)
        return self.budget.max_connections - self.budget.size + closing

    def _claims(self) -> Iterator[tuple[float, int]]:
        """When those came who wait for room, the first first, and in which pool each is."""
        found = [self._claims_of(laws, number) for number, laws in enumerate(self._pools)]
        return heapq.merge(*found)

    def _claims_of(self, laws: Laws, number: int) -> Iterator[tuple[float, int]]:
        core = laws.core
        ledger = core.ledger
        if core.closed or core.store.outage or ledger.opening >= ledger.settings.open_at_once:
            return iter(())
        covered = max(0, ledger.opening - ledger.late)
        most = max(0, ledger.settings.max_size - ledger.size)
        waiting = sorted((laws.came(each), number) for each in ledger.queue)
        return islice(waiting[covered:], most)

    def _listen_to_the_line(self, laws: Laws) -> None:
        line = laws.core.ledger.queue
        serve = line.serve

        def served(item: Any) -> bool:
            head: Waiter[Any] | None = next(iter(line), None)
            if head is not None:
                others = (
                    when for when, number in self._claims() if self._pools[number] is not laws
                )
                earlier = sum(1 for when in others if when < laws.came(head))
                if earlier > self._expected_room:
                    self._broken(f"{self.budget}: {earlier} were overtaken by another's")
            return serve(item)

        line.serve = served  # type: ignore[method-assign]
