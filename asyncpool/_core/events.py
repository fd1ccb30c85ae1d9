"""Events of a pool: each is logged, and the last hundred are kept.

No event is recorded for an ordinary request.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

logger = logging.getLogger("asyncpool")

KEPT = 100
SAME = 1.0
"""Seconds within which equal consecutive events are counted as one."""


PLACES = 100
"""Largest number of call sites that are reported once each; further ones are not reported."""


@dataclass(eq=False, slots=True)
class EventRecord:
    """An event at an instant of `loop.time()`, perhaps repeated."""

    at: float
    kind: str
    text: str
    level: int
    times: int = 1


class Events:
    """The last events of one pool, in order."""

    __slots__ = ("_places", "last")

    def __init__(self) -> None:
        self.last: deque[EventRecord] = deque(maxlen=KEPT)
        self._places: set[tuple[str, str]] = set()

    def is_first(self, kind: str, place: str) -> bool:
        """Record an event's call site; return whether it is new for this kind of event."""
        if (kind, place) in self._places or len(self._places) >= PLACES:
            return False
        self._places.add((kind, place))
        return True

    def record(  # noqa: PLR0917 - each is one column of the log
        self, pool: str, at: float, kind: str, text: str, level: int, facts: dict[str, object]
    ) -> None:
        """Keep an event and log it.

        Args:
            pool: the current name of the pool.
            at: the instant of the event, `loop.time()`.
            kind: the kind of event, in two or three words.
            text: a description without passwords.
            level: the log level.
            facts: additional fields of the log record, each named with the prefix `pool_`.
        """
        self.note(at, kind, text, level)
        if logger.isEnabledFor(level):
            logger.log(
                level, "pool %r: %s", pool, text, extra=fields(pool, kind, **facts), stacklevel=3
            )

    def note(self, at: float, kind: str, text: str, level: int) -> None:
        """Keep an event without logging it."""
        last = self.last[-1] if self.last else None
        if last is not None and last.kind == kind and last.text == text and at - last.at < SAME:
            last.at = at
            last.times += 1
        else:
            self.last.append(EventRecord(at, kind, text, level))


def fields(pool: str, kind: str, **facts: object) -> dict[str, object]:
    """Return the additional fields of a log record, under names that no other library uses."""
    return {
        "pool": pool,
        "pool_event": kind,
        **{f"pool_{name}": value for name, value in facts.items()},
    }
