"""The rows: who asks how often, for how long, and what happens meanwhile.

Loads are in capacities: at 1.0 as many requests come as the pool answers when it is always busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

USE = 0.04
"""Seconds for which a request sleeps on the server, unless its stream says otherwise."""
DEADLINE = 1.0
"""Seconds after which an answer is useless, unless a stream says otherwise."""
DEFAULT_TIMEOUT = 30.0
"""The pool's time limit where callers do not set it: the default of most pools."""
SETTLE = 1.5
"""The load before the measured time, in longest deadlines: then a full queue has aged."""
SPIKE = 2.0
"""Seconds of the spike; the load is low for three times as long after it."""
SIZE = 10
"""Connections of each pool."""


class Caller(StrEnum):
    """How a request tells its deadline."""

    TIMEOUT = "timeout"
    """As the time limit for a connection; an answer that comes later is not stopped."""
    HALF = "half"
    """As half of it, which leaves time for the use."""
    CANCEL = "cancel"
    """To nobody: `asyncio.timeout` cancels it, and the pool has its default limit."""
    CANCEL_WITHIN = "cancel-within"
    """By `asyncpool.within`, inside of such an `asyncio.timeout`."""
    WITHIN = "within"
    """By `asyncpool.within`; to other pools as the time limit for a connection."""


@dataclass(frozen=True)
class Stream:
    """Requests of one kind, which come at random.

    Args:
        name: what the tables call it.
        load: requests, in capacities.
        deadline: seconds after which an answer is useless.
        uses: seconds for which a request sleeps on the server, one of these.
        priority, flow: as for `asyncpool.within`.
        hot: whether a request updates one row, the same for all.
        every: seconds from one burst to the next; None: requests come one by one.
    """

    name: str
    load: float
    deadline: float = DEADLINE
    uses: tuple[float, ...] = (USE,)
    priority: int = 0
    flow: str | None = None
    hot: bool = False
    every: float | None = None


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Args:
        seconds: its duration.
        factor: by which the loads of the streams are multiplied.
        slower: by which the uses are multiplied.
        measured: whether requests that come in this phase are counted.
    """

    seconds: float
    factor: float = 1.0
    slower: float = 1.0
    measured: bool = True


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Args:
        key, title: its name on the command line and in the tables.
        streams: who asks.
        caller: how deadlines are told.
        kind: "steady", "spike" or "brown-out", which gives the phases.
        turn: whether requests for the hot row take turns.
        one_shot: whether requests are statements run by the pool itself.
        pools: the pools that can do this; None: all.
    """

    key: str
    title: str
    streams: tuple[Stream, ...]
    caller: Caller = Caller.TIMEOUT
    kind: str = "steady"
    turn: bool = False
    one_shot: bool = False
    pools: tuple[str, ...] | None = None

    @property
    def load(self) -> float:
        """The load of all streams."""
        return sum(stream.load for stream in self.streams)

    @property
    def longest(self) -> float:
        """The longest deadline."""
        return max(stream.deadline for stream in self.streams)

    @property
    def limit(self) -> float:
        """The time limit of the pool."""
        if self.caller in {Caller.CANCEL, Caller.CANCEL_WITHIN}:
            return DEFAULT_TIMEOUT
        return self.longest / 2 if self.caller is Caller.HALF else self.longest

    @property
    def queues(self) -> bool:
        """Whether the run begins with a burst that fills the wait queue for one deadline.

        At a load of 1.2 a queue needs five seconds to grow so long by itself.
        """
        return self.kind == "steady" and self.load > 1 and not self.turn

    def phases(self, seconds: float) -> list[Phase]:
        """Return the phases of a run whose measured time is about `seconds`.

        The load goes on after the measured time, until the last request of that time has its
        answer or none.
        """
        start = Phase(SETTLE * self.longest, measured=False)
        end = Phase(self.longest, measured=False)
        if self.kind == "spike":
            return [start, Phase(1.0), Phase(SPIKE, factor=10), Phase(3 * SPIKE), end]
        if self.kind == "brown-out":
            half = seconds / 2
            slow = Phase(self.longest, slower=4, measured=False)
            return [start, Phase(half), Phase(half, slower=4), slow]
        return [start, Phase(seconds), end]


OURS = ("asyncpool-wait", "asyncpool-refuse")
LOADS = (0.5, 0.9, 1.0, 1.2, 1.5, 3.0, 10.0)
CANCEL_LOADS = (0.9, 1.2, 3.0, 10.0)


def _all() -> Iterator[Row]:
    for load in LOADS:
        yield Row(f"load-{load:g}", f"load {load:g}", (Stream("all", load),))
    for load in CANCEL_LOADS:
        title = f"load {load:g}, callers cancel"
        yield Row(f"cancel-{load:g}", title, (Stream("all", load),), Caller.CANCEL)
    yield Row(
        "cancel-within-3",
        "load 3, callers cancel, deadline by `within`",
        (Stream("all", 3.0),),
        Caller.CANCEL_WITHIN,
        pools=OURS,
    )
    title = "load 3, time limit half of the deadline"
    yield Row("half-3", title, (Stream("all", 3.0),), Caller.HALF)
    yield Row("spike", "load 0.5, for 2 s 5, then 0.5", (Stream("all", 0.5),), kind="spike")
    title = "load 0.9, server four times slower in the second half"
    yield Row("brown-out", title, (Stream("all", 0.9),), kind="brown-out")
    title = "bursts of 0.6 s of work every 2 s"
    yield Row("bursts", title, (Stream("all", 0.3, every=2.0),))
    mixed = Stream("all", 1.5, uses=(0.005, 0.1))
    yield Row("mixed-uses", "load 1.5, uses of 5 ms and 100 ms", (mixed,))
    short, long = Stream("0.2 s", 1.5, deadline=0.2), Stream("5 s", 1.5, deadline=5.0)
    yield Row("deadlines", "load 3, deadlines of 0.2 s and 5 s", (short, long), Caller.WITHIN)
    shots = (*OURS, "asyncpg")
    title = "load 3, one-shots"
    yield Row("one-shots", title, (Stream("all", 3.0),), one_shot=True, pools=shots)
    small = [Stream(f"small {number}", 0.2, flow=f"small {number}") for number in (1, 2, 3)]
    tenants = (*small, Stream("large", 3.0, flow="large"))
    yield Row("tenants", "tenants: three of 0.2, one of 3", tenants, Caller.WITHIN)
    classes = (Stream("high", 0.2, priority=1), Stream("low", 3.0))
    yield Row("priority", "high priority 0.2, low 3", classes, Caller.WITHIN)
    hot = (Stream("hot row", 0.27, hot=True), Stream("others", 0.63))
    title = "load 0.9, 30 % of it updates one row"
    yield Row("hot", title, hot, Caller.WITHIN)
    yield Row("hot-turn", f"{title}, in turns", hot, Caller.WITHIN, turn=True, pools=OURS)


ROWS = {row.key: row for row in _all()}
COST = "cost"
"""The row that is no load: CPU time of a request that gets no connection."""
