"""The pool's options can be read, and set if psycopg_pool allows it."""

from __future__ import annotations

from typing import Any

import psycopg
import psycopg_pool
import pytest

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool

GIVEN: dict[str, Any] = {
    "conninfo": "dbname=one",
    "kwargs": {"autocommit": True},
    "name": "one",
    "timeout": 1.0,
    "max_waiting": 2,
    "max_lifetime": 3.0,
    "max_idle": 4.0,
    "reconnect_timeout": 5.0,
    "num_workers": 6,
}
OTHER: dict[str, Any] = {
    "conninfo": "dbname=other",
    "kwargs": {},
    "name": "other",
    "timeout": 10.0,
    "max_waiting": 20,
    "max_lifetime": 30.0,
    "max_idle": 40.0,
    "reconnect_timeout": 50.0,
    "num_workers": 60,
}
KINDS = [
    psycopg_pool.AsyncConnectionPool,
    AsyncConnectionPool,
    psycopg_pool.AsyncNullConnectionPool,
    AsyncNullConnectionPool,
]


def name_of(kind: Any) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_what_was_given_can_be_read_and_set(kind: Any) -> None:
    """Both libraries use the same names."""
    pool = kind(**GIVEN, max_size=9, open=False)
    assert {name: getattr(pool, name) for name in GIVEN} == GIVEN
    for name, value in OTHER.items():
        setattr(pool, name, value)
    assert {name: getattr(pool, name) for name in OTHER} == OTHER
    assert pool.max_size == 9
    assert "other" in repr(pool)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("name", ["min_size", "max_size", "closed"])
def test_sizes_and_state_cannot_be_set(kind: Any, name: str) -> None:
    """Use `resize`, `open` and `close` instead."""
    pool = kind("", open=False)
    with pytest.raises(AttributeError):
        setattr(pool, name, 5)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("number", [0, -1])
def test_num_workers_must_be_positive(kind: Any, number: int) -> None:
    """`num_workers=0` is an error as in psycopg_pool, though the value has no effect here."""
    with pytest.raises(ValueError, match="num_workers"):
        kind("", num_workers=number, open=False)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_the_connection_class_is_the_one_given(kind: Any) -> None:
    """The default is psycopg's class, or one derived from it."""

    class Mine(psycopg.AsyncConnection[Any]):
        pass

    assert kind("", connection_class=Mine, open=False).connection_class is Mine
    assert issubclass(kind("", open=False).connection_class, psycopg.AsyncConnection)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", -1),
        ("timeout", "5"),
        ("max_waiting", 1.5),
        ("max_lifetime", 0),
        ("max_idle", float("nan")),
        ("reconnect_timeout", None),
        ("conninfo", "nonsense"),
        ("conninfo", 5),
        ("kwargs", [1]),
    ],
)
def test_an_invalid_value_is_refused_and_changes_nothing(name: str, value: object) -> None:
    """The assignment raises an error that names the option."""
    pool = AsyncConnectionPool(**GIVEN)
    with pytest.raises((TypeError, ValueError), match=name):
        setattr(pool, name, value)
    assert {name: getattr(pool, name) for name in GIVEN} == GIVEN


def test_the_connection_class_cannot_be_changed() -> None:
    """The pool has inspected the class already; psycopg_pool would accept another one silently."""
    pool = AsyncConnectionPool("")
    with pytest.raises(AttributeError):
        pool.connection_class = psycopg.AsyncConnection  # type: ignore[misc]
