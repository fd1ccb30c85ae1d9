"""Findings: the result of each check, with a level and advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
"""From best to worst: a note is information, a problem keeps a pool from working."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `--json` has the same keys."""

    check: str
    """The stable name of the check."""
    level: Level
    found: str
    advice: str = ""
    """The change to make; empty: none."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The numbers in `found`; durations are in seconds."""

    def as_dict(self) -> dict[str, Any]:
        """Convert the finding to a dict of JSON's types."""
        return asdict(self)


def worst(findings: list[Finding]) -> Level:
    """Return the worst level among findings; "ok" if there are none."""
    return max((each.level for each in findings), key=LEVELS.index, default="ok")


def span(seconds: float) -> str:
    """Format a duration for people."""
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
    """Format a number with its noun, in the plural if needed."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
