"""The rows: which processes start, end, are killed or suspended, and when.

Times are seconds from the start of a row; a run may scale all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PLACES = 27
"""The places of the server for ordinary roles, at the start."""
KEPT = 4
"""Other places: `superuser_reserved_connections`, 3, and the session that looks on."""
RESERVED = 3
RESERVE = 3
"""The `reserve=` of the fleet: places that its members leave free."""
SIZE = 10
"""`max_size` of each pool."""
MIN_SIZE = 2
USE = 0.05
"""Seconds for which a request sleeps on the server."""
TASKS = 20
"""Tasks of a busy process, each with one request at a time."""


class Action(StrEnum):
    """An event that happens to processes, or to the server."""

    BUSY = "busy"
    """Open the pool if it is not open, and keep all tasks asking."""
    IDLE = "idle"
    """Stop asking; the pool stays open."""
    END = "end"
    """Close the pool, and end the process."""
    KILL = "kill"
    """SIGKILL."""
    SUSPEND = "suspend"
    """SIGSTOP."""
    RESUME = "resume"
    """SIGCONT."""
    RESTART = "restart"
    """Restart the server with another `max_connections`."""


@dataclass(frozen=True)
class Step:
    """One step of a row.

    Args:
        at: when.
        action: what.
        members: the numbers of the processes; none for a restart.
        places: the new number of places for ordinary roles; only for a restart.
    """

    at: float
    action: Action
    members: tuple[int, ...] = ()
    places: int = 0


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Args:
        key, title: its name on the command line and in the tables.
        steps: what happens, in the order of time.
        seconds: the duration.
        measured: the end of the row that counts for the throughput and Jain's index, in seconds.
        busy: the processes that are busy in that time.
        newcomers: the processes whose first answer is timed.
        event: when the change happens from which the recovery is timed; None: none.
        use: seconds for which a request sleeps on the server.
    """

    key: str
    title: str
    steps: tuple[Step, ...]
    seconds: float
    busy: tuple[int, ...]
    newcomers: tuple[int, ...] = ()
    event: float | None = None
    measured: float = 5.0
    use: float = USE

    @property
    def members(self) -> int:
        """The number of processes."""
        return 1 + max(number for step in self.steps for number in step.members)


FIRST, LATE, ALL = (0, 1, 2), (3, 4, 5), (0, 1, 2, 3, 4, 5)
LEAVING, STAYING = (4, 5), (0, 1, 2, 3)
OLD, NEW = (0, 1, 2, 3), (4, 5, 6, 7)
_START = Step(0.0, Action.BUSY, ALL)

_ROWS = (
    Row(
        "late-busy",
        "three of six start 5 s late, all are busy",
        (Step(0.0, Action.BUSY, FIRST), Step(5.0, Action.BUSY, LATE)),
        seconds=15.0,
        busy=ALL,
        newcomers=LATE,
    ),
    Row(
        "late-idle",
        "three of six start 5 s late, the others idle by then",
        (
            Step(0.0, Action.BUSY, FIRST),
            Step(3.0, Action.IDLE, FIRST),
            Step(5.0, Action.BUSY, LATE),
        ),
        seconds=15.0,
        busy=LATE,
        newcomers=LATE,
    ),
    Row(
        "end",
        "two of six end",
        (_START, Step(5.0, Action.END, LEAVING)),
        seconds=15.0,
        busy=STAYING,
        event=5.0,
    ),
    Row(
        "kill",
        "two of six are killed (SIGKILL)",
        (_START, Step(5.0, Action.KILL, LEAVING)),
        seconds=15.0,
        busy=STAYING,
        event=5.0,
    ),
    Row(
        "suspend",
        "two of six are suspended for 10 s (SIGSTOP)",
        (_START, Step(5.0, Action.SUSPEND, LEAVING), Step(15.0, Action.RESUME, LEAVING)),
        seconds=22.0,
        busy=ALL,
        event=15.0,
    ),
    Row(
        "fewer",
        "a restart changes the places from 27 to 17",
        (_START, Step(5.0, Action.RESTART, places=17)),
        seconds=15.0,
        busy=ALL,
        event=5.0,
    ),
    Row(
        "more",
        "a restart changes the places from 27 to 57",
        (_START, Step(5.0, Action.RESTART, places=57)),
        seconds=15.0,
        busy=ALL,
        event=5.0,
    ),
    Row(
        "deploy",
        "rolling deploy: four of four are replaced, old and new overlap for 5 s",
        (
            Step(0.0, Action.BUSY, OLD),
            Step(5.0, Action.BUSY, NEW),
            *(Step(10.0 + number, Action.END, (number,)) for number in OLD),
        ),
        seconds=20.0,
        busy=NEW,
        newcomers=NEW,
    ),
    Row(
        "alone",
        "one process, SELECT 1 as often as it can",
        (Step(0.0, Action.BUSY, (0,)),),
        seconds=7.0,
        busy=(0,),
        use=0.0,
    ),
)
ROWS = {row.key: row for row in _ROWS}
