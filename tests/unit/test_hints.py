"""Names that other libraries have for the pool's methods."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("fetch", "fetchall()"),
        ("fetchrow", "fetchone()"),
        ("fetch_all", "fetchall()"),
        ("fetch_one", "fetchone()"),
        ("fetch_val", "fetchval()"),
        ("execute_many", "executemany()"),
        ("iterate", "cur.stream()"),
        ("copy_records_to_table", "cur.copy()"),
        ("add_listener", "pool.listen(channel)"),
        ("expire_connections", "drain()"),
        ("terminate", "close(timeout=0)"),
        ("get_size", "stats().size"),
    ],
)
@pytest.mark.parametrize("kind", [AsyncConnectionPool, AsyncNullConnectionPool])
def test_a_name_of_another_library_says_what_to_write(kind: Any, name: str, instead: str) -> None:
    """The error is the one of a name that is not there, and names the class."""
    pool = kind(open=False)
    for owner in (pool, kind):
        assert not hasattr(owner, name)
        with pytest.raises(AttributeError) as error:
            getattr(owner, name)
        assert str(error.value).startswith(f"{kind.__name__!r} has no attribute {name!r}: write ")
        assert instead in str(error.value)
        assert error.value.name == name


def test_a_subclass_may_have_such_a_name() -> None:
    """And an instance too."""

    class Mine(AsyncConnectionPool):
        def fetch(self) -> int:
            return 1

    assert Mine(open=False).fetch() == 1
    pool: Any = AsyncConnectionPool(open=False)
    pool.fetchrow = 2
    assert pool.fetchrow == 2


def test_a_name_that_nobody_has_is_an_ordinary_error() -> None:
    """The class has no `__getattr__`, which would make all attributes slower."""
    assert not hasattr(AsyncConnectionPool, "__getattr__")
    with pytest.raises(AttributeError, match="no attribute 'wrong'"):
        AsyncConnectionPool(open=False).wrong  # type: ignore[attr-defined]  # noqa: B018


def test_what_looks_at_all_members_finds_no_such_name() -> None:
    """Mocks and documentation tools look at all members."""
    assert "fetch" not in {name for name, _ in inspect.getmembers(AsyncConnectionPool(open=False))}
