"""The settings of a pool, checked once.

All durations are float seconds. `math.inf` is allowed; negative numbers, NaN and bool are not.
"""

from __future__ import annotations

import math
import operator
import sys
from dataclasses import dataclass, fields

UNBOUNDED = sys.maxsize
"""The `max_size` of a pool without a limit."""


OVERLOAD = ("wait", "refuse", None)
"""The values of `overload`."""
ABOVE_ZERO = {"max_lifetime", "max_idle", "leak_timeout", "ping_interval", "ping_timeout"}
"""Durations that must not be zero, because the pool would be permanently busy with them."""


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Settings:
    """The sizes and durations of a pool; `dataclasses.replace` makes a changed copy.

    Raises:
        TypeError: a size is not an int, or a duration is not a number.
        ValueError: a number is out of range.
    """

    name: str
    min_size: int
    max_size: int
    timeout: float = 30.0
    """Time limit of a request for a connection."""
    max_waiting: int = 0
    """Largest number of waiters; 0 means no limit."""
    overload: str | None = "wait"
    """Which requests are refused: "wait" those that cannot be served in time, "refuse" also those
    that join a standing queue, None neither."""
    max_lifetime: float = 3600.0
    """Age at which a connection expires, less up to 5 % of jitter."""
    max_idle: float = 600.0
    """Time after which an unused connection above `min_size` is closed."""
    reconnect_timeout: float = 300.0
    """Duration of an outage after which `reconnect_failed` is called."""
    leak_timeout: float = math.inf
    """Duration of a lease after which it is reported as a leak."""
    fail_fast_after: float = 60.0
    """Duration of an outage after which requests fail at once if no connection is left."""
    ping_interval: float = 30.0
    """Time without use after which an idle connection is pinged."""
    ping_timeout: float = 5.0
    """Time limit of one ping."""
    clean_timeout: float = 10.0
    """Time limit of one rollback and reset."""
    close_timeout: float = 2.0
    """Time limit of closing one connection."""
    late_after: float = 1.0
    """Duration of a connect after which another one may be started for the same waiter."""
    open_at_once: int = 32
    """Largest number of connects under way, but for the first `min_size`."""
    fill_at_once: int = 128
    """Largest number of connects under way for the first `min_size`, as many as small queues of
    new connections have places (PgBouncer's, and a server's on older kernels)."""
    ping_at_once: int = 8
    """Largest number of concurrent pings of a maintenance round."""
    keeps_idle: bool = True
    """Whether connections that no request waits for are kept."""

    def __post_init__(self) -> None:
        if self.overload not in OVERLOAD:
            msg = f"overload must be 'wait', 'refuse' or None: got {self.overload!r}"
            raise ValueError(msg)
        sizes(self.min_size, self.max_size, keeps_idle=self.keeps_idle)
        for each in fields(self):
            number = getattr(self, each.name)
            if each.type == "int":
                number = count(each.name, number)
            elif each.type == "float":
                number = duration(each.name, number, above_zero=each.name in ABOVE_ZERO)
            object.__setattr__(self, each.name, number)

    @property
    def max_size_or_zero(self) -> int:
        """`max_size` as reported to users; 0 means no limit."""
        return 0 if self.max_size == UNBOUNDED else self.max_size

    @property
    def max_size_text(self) -> str:
        """`max_size` for a message; "unlimited" means no limit."""
        return str(self.max_size_or_zero or "unlimited")


def sizes(min_size: int, max_size: int | None, *, keeps_idle: bool = True) -> tuple[int, int]:
    """Check both sizes and return them; `max_size=None` means a fixed size.

    Where idle connections are not kept, `min_size` must be 0, and a `max_size` of None or 0 means
    no limit.
    """
    min_size = count("min_size", min_size)
    if not keeps_idle:
        if min_size:
            msg = f"min_size must be 0 if idle connections are not kept: got {min_size}"
            raise ValueError(msg)
        return 0, UNBOUNDED if max_size is None else count("max_size", max_size) or UNBOUNDED
    max_size = min_size if max_size is None else count("max_size", max_size)
    if max_size < min_size:
        msg = f"max_size must be at least min_size: got min_size={min_size}, max_size={max_size}"
        raise ValueError(msg)
    if max_size == 0:
        msg = "max_size must be at least 1: got 0; with min_size=0, max_size must be given"
        raise ValueError(msg)
    return min_size, max_size


def whole(name: str, value: int) -> int:
    """Check and return an int."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        msg = f"{name} must be an int, not {value!r}"
        raise TypeError(msg)
    return operator.index(value)


def count(name: str, value: int) -> int:
    """Check and return an int of at least 0."""
    if (number := whole(name, value)) < 0:
        msg = f"{name} must not be negative: got {number}"
        raise ValueError(msg)
    return number


def duration(name: str, value: float, *, above_zero: bool = False) -> float:
    """Check and return a duration in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} must be a number of seconds, not {value!r}"
        raise TypeError(msg)
    if math.isnan(value) or value < 0 or (above_zero and value == 0):
        least = "above zero" if above_zero else "zero or more"
        msg = f"{name} must be {least} seconds: got {value!r}"
        raise ValueError(msg)
    return float(value)
