"""One borrowing of a connection."""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import chain

import psycopg
import pytest

from asyncpool._core import stacks
from asyncpool._core.label import current_note, label
from asyncpool._core.lease import NO_LEASE, Lease, ManualLease, SharedLease, StandingLease
from asyncpool._core.stacks import capture_three


def test_a_new_lease_has_neither_holder_nor_notes() -> None:
    """They are set when the connection is there, and when there is something to note."""
    for kind in (Lease, ManualLease, SharedLease, StandingLease):
        lease = kind.new()
        assert (lease.holder, lease.notes, lease.borrowed_at()) == (None, None, [])


def test_a_lease_has_a_kind() -> None:
    """It decides whether any task may end the lease, and whether it may be a leak."""
    kinds = {Lease: (False, False, True), ManualLease: (True, False, True)}
    kinds[SharedLease] = kinds[StandingLease] = (False, True, False)
    for kind, expected in kinds.items():
        lease = kind.new()
        assert (lease.is_manual, lease.is_shared, lease.may_leak) == expected
        assert lease.is_standing is (kind is StandingLease)
    assert (NO_LEASE.is_manual, NO_LEASE.is_shared, NO_LEASE.may_leak) == (False, False, False)


def test_a_lease_is_reported_as_a_leak_once() -> None:
    """The report is noted in it."""
    lease = Lease.new()
    notes = lease.annotate()
    assert lease.may_leak
    assert (notes.session, notes.autocommit, notes.key) == (None, None, None)
    assert lease.annotate() is notes
    notes.is_reported = True
    assert not lease.may_leak


def test_a_lease_takes_no_other_attributes() -> None:
    """A misspelt name does not become state."""
    lease = Lease.new()
    with pytest.raises(AttributeError):
        lease.note = None  # type: ignore[attr-defined]


def test_the_call_site_is_that_of_the_lease() -> None:
    """It is there if it was recorded."""
    lease = Lease.new()
    lease.trace = capture_three(sys._getframe())
    assert lease.borrowed_at()[0].startswith(__file__)


def test_frames_of_libraries_are_shown_where_there_are_no_others() -> None:
    """Who borrows is the program; a framework's frames only stand between it and the pool."""
    lease = Lease.new()
    made = [
        compile("0", name, "eval")
        for name in (json.__file__, psycopg.__file__, stacks.__file__, "/srv/shop/orders.py")
    ]
    lease.trace = tuple(chain.from_iterable((code, 0) for code in made))
    assert [each.partition(":")[0] for each in lease.borrowed_at()] == ["/srv/shop/orders.py"]
    lease.trace = lease.trace[:6]
    assert [each.partition(":")[0] for each in lease.borrowed_at()] == [
        json.__file__,
        psycopg.__file__,
    ]


async def test_messages_name_the_holder() -> None:
    """It may have ended, or be one-shot statements of several tasks."""
    lease, task = Lease.new(), asyncio.current_task()
    assert task is not None
    assert lease.holder_name == "(one-shot statements)"
    lease.holder = task
    assert lease.holder_name == task.get_name()
    with label("report"):
        assert lease.holder_name == f"report in {task.get_name()}"
    lease.holder = "the till"
    assert lease.holder_name == "the till (ended)"
    assert NO_LEASE.holder_name == "(being handed over)"


async def test_the_label_of_the_call_site_outlasts_its_block() -> None:
    """Until then the task's label of now is shown, which may be more exact."""
    lease, task = Lease.new(), asyncio.current_task()
    lease.holder = task
    with label("request"):
        lease.label_note = current_note()
        with label("its second part"):
            assert lease.label == "its second part"
    with label("the next request"):
        assert lease.label == "request"


async def test_a_holder_that_has_ended_leaves_its_texts() -> None:
    """The lease keeps neither the task nor what its label refers to."""

    async def work() -> None:
        label("nightly report")

    lease, task = Lease.new(), asyncio.create_task(work(), name="worker")
    lease.holder = task
    lease.label_note = current_note()
    await task
    lease.forget_task()
    assert not hasattr(lease, "label_note")
    assert lease.label == "nightly report"
    assert lease.holder_name == "nightly report in worker (ended)"
