"""Every number that makes no sense is refused, by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from asyncpool._core.settings import Settings, count, duration, sizes

GOOD: dict[str, Any] = {
    "name": "test",
    "min_size": 1,
    "max_size": 2,
    "timeout": 30.0,
    "max_waiting": 0,
    "max_lifetime": 3600.0,
    "max_idle": 600.0,
    "reconnect_timeout": 300.0,
    "ping_interval": 30.0,
    "ping_timeout": 5.0,
}
COUNTS = ["min_size", "max_size", "max_waiting"]
DURATIONS = [
    "timeout",
    "max_lifetime",
    "max_idle",
    "reconnect_timeout",
    "ping_interval",
    "ping_timeout",
]
ABOVE_ZERO = ["max_lifetime", "max_idle", "ping_interval", "ping_timeout"]


class Five:
    """An integer of another library's, as numpy has them."""

    def __index__(self) -> int:
        return 5


def test_good_numbers_are_kept_as_they_are() -> None:
    """Nothing is rounded or clipped."""
    numbers = Settings(**GOOD)
    assert {name: getattr(numbers, name) for name in GOOD} == GOOD


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1.0, math.nan, math.inf, "1", True, False, [1]])
def test_a_size_that_is_no_int_is_refused_by_name(name: str, value: Any) -> None:
    """A bool is no number, and a float no count."""
    with pytest.raises(TypeError, match=rf"^{name} must be an int, not "):
        Settings(**GOOD | {name: value})


@pytest.mark.parametrize("name", COUNTS)
def test_a_negative_size_is_refused_with_its_value(name: str) -> None:
    """The message has both."""
    with pytest.raises(ValueError, match=rf"^{name} must not be negative: got -1$"):
        Settings(**GOOD | {name: -1})


def test_no_min_size_is_not_taken_for_zero() -> None:
    """Only max_size may be None."""
    with pytest.raises(TypeError, match=r"^min_size must be an int, not None"):
        Settings(**GOOD | {"min_size": None})


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", ["1", None, True, False, 1j, [1.0]])
def test_a_duration_that_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    """Seconds are an int or a float."""
    with pytest.raises(TypeError, match=rf"^{name} must be a number of seconds, not "):
        Settings(**GOOD | {name: value})


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [-1, -0.001, -math.inf, math.nan])
def test_a_duration_out_of_range_is_refused_with_its_value(name: str, value: float) -> None:
    """NaN compares with nothing, so it is refused as well."""
    with pytest.raises(ValueError, match=rf"^{name} must be .* seconds: got {value!r}$"):
        Settings(**GOOD | {name: value})


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_a_duration_that_would_keep_the_pool_busy_must_be_above_zero(name: str) -> None:
    """A life, an idleness or a ping of no length would make it do nothing else."""
    with pytest.raises(ValueError, match=rf"^{name} must be above zero seconds: got 0$"):
        Settings(**GOOD | {name: 0})


@pytest.mark.parametrize("name", sorted(set(DURATIONS) - set(ABOVE_ZERO)))
def test_other_durations_may_be_zero(name: str) -> None:
    """ "At once" makes sense for them."""
    assert getattr(Settings(**GOOD | {name: 0}), name) == 0.0


@pytest.mark.parametrize("name", DURATIONS)
def test_a_duration_may_be_infinite(name: str) -> None:
    """`math.inf` means never."""
    assert getattr(Settings(**GOOD | {name: math.inf}), name) == math.inf


def test_without_max_size_the_pool_has_one_fixed_size() -> None:
    """psycopg_pool does so too."""
    assert sizes(3, None) == (3, 3)


def test_max_size_below_min_size_is_refused_with_both() -> None:
    """The message has both numbers."""
    with pytest.raises(ValueError, match=r"at least min_size: got min_size=3, max_size=2$"):
        sizes(3, 2)


@pytest.mark.parametrize("max_size", [0, None])
def test_a_pool_without_room_is_refused(max_size: int | None) -> None:
    """And the message says what to give instead."""
    with pytest.raises(
        ValueError, match="at least 1: got 0; with min_size=0, max_size must be given"
    ):
        sizes(0, max_size)


def test_the_integers_of_other_libraries_are_integers() -> None:
    """Any value with `__index__` counts, and becomes an int."""
    five: Any = Five()
    assert count("min_size", five) == 5
    assert type(count("min_size", five)) is int


def test_a_whole_number_of_seconds_becomes_a_float() -> None:
    """All durations are floats from here on."""
    assert type(duration("timeout", 3)) is float
    assert type(Settings(**GOOD | {"timeout": 3}).timeout) is float


def test_a_number_that_is_replaced_is_checked() -> None:
    """The attributes of a pool that can be set are checked so."""
    with pytest.raises(ValueError, match=r"^max_idle must be above zero seconds: got 0$"):
        replace(Settings(**GOOD), max_idle=0)
