"""The record of one connection."""

from __future__ import annotations

import math
import sys

import pytest

from asyncpool._core.entry import RETIRED, Entry, State
from asyncpool._core.stacks import three


def test_an_entry_exists_before_its_connection() -> None:
    """It is OPENING, and has no connection to be mistaken for one."""
    entry: Entry[str] = Entry(5.0)
    assert entry.state is State.OPENING
    assert not hasattr(entry, "conn")
    assert (entry.opened_at, entry.used_at, entry.healthy_at) == (5.0, 5.0, 5.0)


def test_a_new_entry_has_done_nothing_yet() -> None:
    """Its instants are that of its making, and nobody has or keeps anything of it."""
    entry: Entry[str] = Entry(3.0)
    instants = (entry.opened_at, entry.expires_at, entry.used_at, entry.healthy_at, entry.lent_at)
    assert instants == (3.0,) * 5
    assert (entry.uses, entry.kept_in, entry.manual_in, entry.reported_in, entry.traced_in) == (
        0,
    ) * 5
    assert (entry.holder, entry.kept, entry.predecessor) == (None, None, None)
    assert not any((entry.late, entry.shared, entry.watched))
    assert entry.trace == ()


def test_a_doomed_entry_is_past_its_life_at_any_instant() -> None:
    """So that every question about its life has the same answer."""
    entry: Entry[str] = Entry(5.0)
    entry.retire()
    assert entry.expires_at == RETIRED
    assert entry.expires_at < 0.0
    assert math.isinf(RETIRED)


def test_an_entry_takes_no_other_attributes() -> None:
    """A typing error does not become state."""
    entry: Entry[str] = Entry(0.0)
    with pytest.raises(AttributeError):
        entry.expire_at = 1.0  # type: ignore[attr-defined]


def test_the_repr_has_the_state_and_the_uses() -> None:
    """And nothing of the connection, which may know a password."""
    entry: Entry[str] = Entry(0.0)
    entry.conn = "password=secret"
    assert repr(entry) == "<Entry opening uses=0>"


def test_where_it_was_borrowed_is_told_of_that_use_only() -> None:
    """What was noted of an earlier one is another borrower's."""
    entry: Entry[object] = Entry(0.0)
    assert entry.borrowed_at() == []
    entry.uses, entry.trace, entry.traced_in = 1, three(sys._getframe()), 1
    assert entry.borrowed_at()[0].startswith(__file__)
    entry.uses = 2
    assert entry.borrowed_at() == []
