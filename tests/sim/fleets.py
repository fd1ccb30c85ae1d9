"""Fleets of many members on the rule alone, on a virtual clock: no pools, and a server in numbers.

A member looks about once a second, and sooner while it lacks connections. It needs a connection for
that which is idle, new or just returned. A look publishes, then reads, then is applied, each some
milliseconds after the other; what others do meanwhile is unseen. What it has published is gone with
the session that shows it.
A connect takes a while too, and only then is the connection visible. The server refuses what it has
no place for.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from asyncpool._fleet.rule import STALE, VALID, Member, grant, share

RETRY = 0.25
"""The longest pause of a newcomer that the server has refused."""
TURNS = 3
"""The most looks one after another on a connection."""
TICK = 0.05
"""Seconds between two moments at which connections are returned."""
WAY = 0.002, 0.05
"""Seconds between publishing and reading, and between reading and its effect."""
SLOW = 0.5, 5.0
"""The same where looks hang: longer than a claim is valid, and than others believe in it."""


@dataclass(eq=False)
class Process:
    """One member: what it has, needs, and has published."""

    name: str
    demand: int
    """The connections that it would use now."""
    weight: float = 1.0
    hold: float = 0.05
    """Seconds of one use of a connection."""
    max_size: int = 10
    size: int = 0
    visible: int = 0
    """The part of the size that the server shows."""
    want: int | None = None
    claim: int = 0
    looked_at: float = -math.inf
    most: int = 1
    """How many connections it may have now."""
    valid_until: float = math.inf
    lapsed: bool = False
    """Whether its claim has ended because it could not look."""
    extra_at: float = -math.inf
    """When it last opened a connection after that."""
    seen: tuple[int, dict[str, Member]] | None = None
    """The places and the members, as its last look has shown them."""
    asks: bool = False
    """Whether it seeks a connection to look on."""
    looking: bool = False
    is_fresh: bool = True
    """Whether it has not looked yet."""
    pause: float = 0.1
    paused: bool = False
    slow: bool = False
    """Whether its looks take seconds, as on a network that loses packets."""
    ended: bool = False
    started_at: float = 0.0
    served_at: float | None = None
    refused: int = 0
    """Connects that the server refused although the rule had allowed them."""

    @property
    def needed(self) -> int:
        """The connections that it needs."""
        return min(self.demand, self.max_size)

    def is_new(self, now: float) -> bool:
        """Whether it has opened one without a claim, and the others may not have seen it yet."""
        is_first = self.size > 0 and (self.served_at is None or now - self.served_at < 2.0)
        return is_first or now - self.extra_at < 2.0

    @property
    def idle(self) -> int:
        """The connections that are open and not needed."""
        return max(self.visible - self.needed, 0)


class World:
    """A server and its fleet.

    Args:
        places: the connections that the server leaves to the fleet, with the reserve.
        seed: of all that is random.
        reserve: the fleet's reserve.
    """

    def __init__(self, places: int, seed: int = 0, reserve: int = 3) -> None:
        self.random = Random(seed)
        self.places, self.reserve = places, reserve
        self.now = 0.0
        self.members: dict[str, Process] = {}
        self.used = 0
        """The connections of all members."""
        self.most_used = 0
        """The most connections that there were at a time."""
        self.reserve_used = 0
        """Connections opened in the reserve, without the first one of each new member."""
        self.changes = 0
        """Connections opened and closed."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something after a delay."""
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, action))

    def run(self, seconds: float) -> None:
        """Let the time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
            self.most_used = max(self.most_used, self.used)
        self.now = end

    def start(self, demand: int, **facts: float) -> Process:
        """Start a member."""
        self._number += 1
        process = Process(f"{self.random.getrandbits(24):06x}", demand, **facts)  # type: ignore[arg-type]
        process.started_at = self.now
        self.members[process.name] = process
        self._act(process)
        self._tick(process)
        return process

    def end(self, process: Process) -> None:
        """Kill a member: its connections are gone at once."""
        process.ended = True
        self.changes += process.size
        self.used -= process.size
        del self.members[process.name]

    def reap(self, process: Process) -> None:
        """Close the idle connections of a member, as after `max_idle`."""
        while process.idle and not process.looking and process.visible > 1:
            self._close(process)

    def jain(self) -> float:
        """Return Jain's index of the sizes by weight."""
        parts = [each.size / each.weight for each in self.members.values()]
        return sum(parts) ** 2 / (len(parts) * sum(part**2 for part in parts))

    # What a member does

    def _tick(self, process: Process) -> None:
        """Use and return connections; open and close some."""
        if process.ended:
            return
        if not process.paused:
            if process.asks and (process.idle or self._returned(process)):
                self._look(process)
            self._act(process)
        self.at(TICK, lambda: self._tick(process))

    def _act(self, process: Process) -> None:
        if self.now > process.valid_until:
            process.most, process.valid_until = process.size + 1, self.now + VALID
            process.lapsed = True
        above = process.size - process.most
        if above > 0:
            for _ in range(min(above, process.idle + self._returned(process))):
                self._close(process)
        while process.size < min(process.most, process.needed):
            is_first = not process.size or process.lapsed
            come = sum(each.is_new(self.now) for each in self.members.values())
            if self.used >= self.places:
                process.refused += not is_first and come <= self.reserve
                break
            if process.lapsed:
                process.extra_at = self.now
            process.size += 1
            self.used += 1
            self.changes += 1
            above = self.used - come - self.places + self.reserve
            self.reserve_used += above > 0 and not is_first
            self.at(self.random.uniform(0.005, 0.05), lambda: self._opened(process))
        if process.seen is None and not process.size and process.needed:
            self.at(self.random.uniform(RETRY / 2, RETRY), lambda: self._retry(process))

    def _returned(self, process: Process) -> int:
        """Return how many of the connections in use are returned now."""
        busy = process.visible - process.idle
        return sum(self.random.random() < TICK / process.hold for _ in range(busy))

    def _close(self, process: Process) -> None:
        shows = not process.looking and (process.idle or not self.random.randrange(process.visible))
        process.size, process.visible = process.size - 1, process.visible - 1
        self.used -= 1
        self.changes += 1
        if shows and process.seen is not None:  # the session with what it has published
            process.want, process.claim = None, 0
            if process.most > process.size:
                process.most = process.size
                process.valid_until = self.now + (VALID if process.idle else 0.0)
            self._ask(process)

    def _retry(self, process: Process) -> None:
        if not (process.ended or process.paused or process.size):
            self._act(process)

    def _opened(self, process: Process) -> None:
        if process.ended or process.visible >= process.size:
            return
        process.visible += 1
        if process.served_at is None:
            process.served_at, process.asks = self.now, True
        if process.asks:
            self._look(process)

    # The look

    def _ask(self, process: Process) -> None:
        if not (process.ended or process.looking):
            process.asks = True
            if process.idle and not process.paused:
                self._look(process)

    def _look(self, process: Process, turn: int = 1) -> None:
        if process.ended or (process.looking and turn == 1):
            return
        process.asks, process.looking = False, True
        began, claim = self.now, self._next_claim(process)
        process.most = min(process.most, max(claim, process.size))
        process.want, process.claim = process.needed - process.size, claim
        process.looked_at = self.now
        self.at(self._way(process), lambda: self._read(process, began, claim, turn))

    def _next_claim(self, process: Process) -> int:
        if process.seen is None:
            return min(max(process.needed, process.size), process.max_size)
        places, members = process.seen
        members = {**members, process.name: self._own(process)}
        return min(share(places, members, process.name).claim, process.max_size)

    def _read(self, process: Process, began: float, claim: int, turn: int) -> None:
        seen = {
            each.name: Member(
                each.visible, each.weight, each.want, each.claim, max(self.now - each.looked_at, 0)
            )
            for each in self.members.values()
            if each.visible
        }
        for name, each in seen.items():
            if self.members[name].want is None:
                age = self.now - self.members[name].started_at
                seen[name] = Member(each.size, each.weight, age=age)
        places = self.places - self.reserve
        self.at(
            self._way(process), lambda: self._apply(process, began, claim, turn, (places, seen))
        )

    def _apply(
        self,
        process: Process,
        began: float,
        claim: int,
        turn: int,
        view: tuple[int, dict[str, Member]],
    ) -> None:
        if process.ended:
            return
        if process.paused:
            self.at(0.1, lambda: self._apply(process, began, claim, turn, view))
            return
        process.lapsed = False
        process.seen, process.valid_until = view, began + VALID
        places, seen = view
        members = {**seen, process.name: self._own(process)}
        given = grant(places, members, process.name, claim)
        process.most = given.limit
        self._act(process)
        is_short = process.size < process.needed
        if given.next > given.limit and turn < TURNS and (is_short or process.is_fresh):
            self._look(process, turn + 1)
            return
        process.looking, process.is_fresh = False, False
        pause = self.random.uniform(0.9, 1.0)
        if is_short:
            if given.next > given.limit:
                process.pause = 0.1
            pause, process.pause = process.pause, min(2 * process.pause, 0.5)
        else:
            process.pause = 0.1
        self.at(pause, lambda: self._ask(process))

    def _own(self, process: Process) -> Member:
        return Member(process.size, process.weight, process.needed - process.size)

    def _way(self, process: Process) -> float:
        return self.random.uniform(*(SLOW if process.slow else WAY))


assert VALID < STALE
