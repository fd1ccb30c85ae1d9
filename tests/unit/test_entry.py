"""The record of one connection."""

from __future__ import annotations

import math

import pytest

from asyncpool._core.entry import RETIRED, Entry, State
from asyncpool._core.lease import NO_LEASE


def test_an_entry_exists_before_its_connection() -> None:
    """The entry is OPENING and has no connection."""
    entry: Entry[str] = Entry(5.0)
    assert entry.state is State.OPENING
    assert not hasattr(entry, "conn")
    assert (entry.opened_at, entry.used_at, entry.healthy_at) == (5.0, 5.0, 5.0)


def test_a_new_entry_is_unused() -> None:
    """Its instants are that of its creation, and it has no lease."""
    entry: Entry[str] = Entry(3.0)
    assert (entry.opened_at, entry.expires_at, entry.used_at) == (3.0,) * 3
    assert (entry.healthy_at, entry.left_at, entry.leased_at) == (3.0,) * 3
    assert (entry.uses, entry.lease) == (0, NO_LEASE)
    assert entry.predecessor is None
    assert not any((entry.late, entry.watched))


def test_a_retired_entry_has_expired_at_any_instant() -> None:
    """One comparison answers both questions."""
    entry: Entry[str] = Entry(5.0)
    entry.retire()
    assert entry.expires_at == RETIRED
    assert entry.expires_at < 0.0
    assert math.isinf(RETIRED)


def test_an_entry_takes_no_other_attributes() -> None:
    """A misspelt name does not become state."""
    entry: Entry[str] = Entry(0.0)
    with pytest.raises(AttributeError):
        entry.expire_at = 1.0  # type: ignore[attr-defined]


def test_the_repr_has_the_state_and_the_uses() -> None:
    """The connection, which may contain a password, is not shown."""
    entry: Entry[str] = Entry(0.0)
    entry.conn = "password=secret"
    assert repr(entry) == "<Entry opening uses=0>"
