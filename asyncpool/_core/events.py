"""What has happened to a pool of late: one line in the log and one of the last hundred here.

Nothing of what is done for each request is among them.
"""

from __future__ import annotations

import logging
from collections import deque

logger = logging.getLogger("asyncpool")

KEPT = 100
SAME = 1.0
"""Seconds within which events of one kind, one after the other, are one that is counted."""


PLACES = 100
"""Places in the program of which something is logged once each; further ones are not logged."""


class EventRecord:
    """Something that has happened, at an instant of `loop.time()`; perhaps several times."""

    __slots__ = ("at", "kind", "level", "text", "times")

    def __init__(self, at: float, kind: str, text: str, level: int) -> None:
        self.at = at
        self.kind = kind
        self.text = text
        self.level = level
        self.times = 1


class Events:
    """The last ones of one pool, the latest at the end."""

    __slots__ = ("_places", "last")

    def __init__(self) -> None:
        self.last: deque[EventRecord] = deque(maxlen=KEPT)
        self._places: set[tuple[str, str]] = set()

    def is_first(self, kind: str, place: str) -> bool:
        """Whether an event of this kind has not been seen at this place before; note it."""
        if (kind, place) in self._places or len(self._places) >= PLACES:
            return False
        self._places.add((kind, place))
        return True

    def record(  # noqa: PLR0917 - each is one column of the log
        self, pool: str, at: float, kind: str, text: str, level: int, facts: dict[str, object]
    ) -> None:
        """Note an event and log it.

        Args:
            pool: its name at this time.
            at: when it has happened, `loop.time()`.
            kind: which of its kinds it is, in two or three words.
            text: what there is to say of it; no password.
            level: that of the log's line.
            facts: more fields of the log's record, each under its name after `pool_`.
        """
        self.note(at, kind, text, level)
        if logger.isEnabledFor(level):
            logger.log(
                level, "pool %r: %s", pool, text, extra=fields(pool, kind, **facts), stacklevel=3
            )

    def note(self, at: float, kind: str, text: str, level: int) -> None:
        """Note what is logged elsewhere."""
        last = self.last[-1] if self.last else None
        if last is not None and last.kind == kind and last.text == text and at - last.at < SAME:
            last.at = at
            last.times += 1
        else:
            self.last.append(EventRecord(at, kind, text, level))


def fields(pool: str, kind: str, **facts: object) -> dict[str, object]:
    """What a record of the log is to have besides its text, under names that nobody else gives."""
    return {
        "pool": pool,
        "pool_event": kind,
        **{f"pool_{name}": value for name, value in facts.items()},
    }
