"""Every number of a pool, with its unit, checked once.

All durations are seconds. `math.inf` is a duration; a negative number, NaN and a bool are not.
"""

from __future__ import annotations

import math
import operator
import sys
from dataclasses import dataclass, fields

UNBOUNDED = sys.maxsize
"""The `max_size` of a pool that may have as many connections as it likes."""


ABOVE_ZERO = {"max_lifetime", "max_idle", "leak_timeout", "ping_interval", "ping_timeout"}
"""Durations that must not be zero: with any of these a pool would do nothing else."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a pool, each of which is checked; `dataclasses.replace` makes others.

    Raises:
        TypeError: a size is no int, or a duration no number.
        ValueError: a number is out of range; the message has it.
    """

    name: str
    min_size: int
    max_size: int
    timeout: float = 30.0
    """How long a request waits for a connection."""
    max_waiting: int = 0
    """The most requests in the line; 0 is no limit."""
    max_lifetime: float = 3600.0
    """The age at which a connection is retired, less up to 5 % of jitter."""
    max_idle: float = 600.0
    """How long an idle connection above `min_size` is kept."""
    reconnect_timeout: float = 300.0
    """The length of an outage after which `reconnect_failed` is told."""
    leak_timeout: float = math.inf
    """How long a connection may be lent before that is told."""
    fail_fast_after: float = 60.0
    """The length of an outage after which requests fail at once, where nothing is left."""
    ping_interval: float = 30.0
    """How long a connection may be idle before it is pinged."""
    ping_timeout: float = 5.0
    """The limit of one ping."""
    clean_timeout: float = 10.0
    """The limit of one roll-back and reset."""
    close_timeout: float = 2.0
    """The limit of one farewell to the server."""
    late_after: float = 1.0
    """How long a connect may take before another is opened beside it for whoever waits."""
    open_at_once: int = 32
    """The most connections that are being opened in the same moment."""
    ping_at_once: int = 8
    """The most connections that a round pings in the same moment."""
    keeps_idle: bool = True
    """Whether a connection that nobody waits for is kept."""

    def __post_init__(self) -> None:
        sizes(self.min_size, self.max_size, keeps_idle=self.keeps_idle)
        for each in fields(self):
            number = getattr(self, each.name)
            if each.type == "int":
                number = count(each.name, number)
            elif each.type == "float":
                number = duration(each.name, number, above_zero=each.name in ABOVE_ZERO)
            object.__setattr__(self, each.name, number)

    @property
    def bound(self) -> int:
        """`max_size` as it is told; 0 is no bound."""
        return 0 if self.max_size == UNBOUNDED else self.max_size

    @property
    def bound_in_words(self) -> str:
        """The same for a message."""
        return str(self.bound or "unlimited")


def sizes(min_size: int, max_size: int | None, *, keeps_idle: bool = True) -> tuple[int, int]:
    """Both sizes, where `max_size=None` means a pool of one fixed size.

    Where no idle connection is kept, `min_size` is 0, and no `max_size`, or 0, is no bound.
    """
    min_size = count("min_size", min_size)
    if not keeps_idle:
        if min_size:
            msg = f"min_size must be 0 where no connection is kept: got {min_size}"
            raise ValueError(msg)
        return 0, UNBOUNDED if max_size is None else count("max_size", max_size) or UNBOUNDED
    max_size = min_size if max_size is None else count("max_size", max_size)
    if max_size < min_size:
        msg = f"max_size must be at least min_size: got min_size={min_size}, max_size={max_size}"
        raise ValueError(msg)
    if max_size == 0:
        msg = "max_size must be at least 1: with min_size=0 give max_size a number of its own"
        raise ValueError(msg)
    return min_size, max_size


def count(name: str, value: int) -> int:
    """A whole number from zero up."""
    if isinstance(value, bool):
        msg = f"{name} must be an int, not {value!r}"
        raise TypeError(msg)
    try:
        number = operator.index(value)
    except TypeError:
        msg = f"{name} must be an int, not {value!r}"
        raise TypeError(msg) from None
    if number < 0:
        msg = f"{name} must not be negative: got {number}"
        raise ValueError(msg)
    return number


def duration(name: str, value: float, *, above_zero: bool = False) -> float:
    """A length of time in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} must be a number of seconds, not {value!r}"
        raise TypeError(msg)
    if math.isnan(value) or value < 0 or (above_zero and value == 0):
        least = "above zero" if above_zero else "zero or more"
        msg = f"{name} must be {least} seconds: got {value!r}"
        raise ValueError(msg)
    return float(value)
