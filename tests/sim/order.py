"""The laws of the order in which waiters are served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

Place = tuple[int, Hashable]


class OrderLaws:
    """Checks each hand-over against the waiters of that moment.

    Args:
        require: checks one law.
        number: returns the number of a waiter's request, in the order of arrival.
    """

    def __init__(self, require: Callable[[bool, str], None], number: Callable[[Any], int]) -> None:
        self._require = require
        self._number = number
        self._waiting: dict[Place, set[int]] = {}
        """The numbers of each flow's waiters at the last hand-over."""
        self._overtaken: dict[Place, Counter[Hashable]] = {}
        """For each flow that waits, how often each other one was served since it was itself."""

    def check(self, served: list[Any], waiting: list[Any]) -> None:
        """Check one hand-over.

        Args:
            served: the waiters that were served: one or none.
            waiting: the waiters before the hand-over, without those that it has refused.
        """
        flows: dict[Place, list[int]] = {}
        for waiter in waiting:
            flows.setdefault(_place(waiter), []).append(self._number(waiter))
        # A flow whose waiters have all left is a new one: it comes after the others.
        self._overtaken = {
            place: self._overtaken[place]
            if not self._waiting.get(place, set()).isdisjoint(numbers)
            else Counter()
            for place, numbers in flows.items()
        }
        self._waiting = {place: set(numbers) for place, numbers in flows.items()}
        for waiter in served:
            priority, flow = place = _place(waiter)
            self._require(priority == max(each for each, _ in flows), "a lower priority was first")
            self._require(self._number(waiter) == min(flows[place]), "a waiter was overtaken")
            for (other_priority, other), overtaken in self._overtaken.items():
                if other_priority == priority and other != flow:
                    overtaken[flow] += 1
                    self._require(overtaken[flow] == 1, f"the flow {other!r} lost its turn")
            self._overtaken[place].clear()


def _place(waiter: Any) -> Place:
    return waiter.place or (0, None)
