"""What a look at a server ends in: a level, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
"""From the best to the worst: a note is good to know, a problem keeps a pool from working."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them; `--json` has the same keys."""

    check: str
    """What was looked at, by a name that stays the same."""
    level: Level
    found: str
    advice: str = ""
    """What to change; empty where nothing has to be."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The numbers in `found`, durations in seconds."""

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict of JSON's own types."""
        return asdict(self)


def worst(findings: list[Finding]) -> Level:
    """The level of all together."""
    return max((each.level for each in findings), key=LEVELS.index, default="ok")


def span(seconds: float) -> str:
    """A duration, for people."""
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.4g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def many(number: int, word: str) -> str:
    """A number of things."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
