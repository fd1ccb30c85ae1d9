"""A lease: one borrowing of a connection.

It begins when its holder has the connection and ends when the connection is released; nothing that
is true of it outlives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, Self

from asyncpool._core.label import Note, label_of, labelled, shown
from asyncpool._core.stacks import Trace, lines


class Notes:
    """Facts that few leases have. The pool's blocks set and read all but the first and last."""

    is_reported = False
    """Whether the lease was reported as a leak."""
    session: Any = None
    """The session whose connection this is."""
    autocommit: bool | None = None
    """The autocommit mode to restore at the end of the lease."""
    key: Hashable = None
    """The key whose connection this is."""
    label = ""
    """The label of a holder that has ended."""


class Lease:
    """One borrowing of a connection.

    There is no `__init__`, which would take 4 % of the time of an acquire and release: code on the
    fast path sets the attributes itself, other code uses `new`.
    """

    __slots__ = ("holder", "label_note", "notes", "trace")

    is_manual = False
    """Whether it was made outside a context manager, so that any task may end it."""
    is_shared = False
    """Whether it serves no single request, so that it is neither a use nor a leak."""
    is_standing = False
    """Whether it is meant to last."""

    holder: asyncio.Task[Any] | str | None
    """The task that has the connection; its name, after `forget_task`; None: no single task."""
    label_note: Note
    """The label at the call of `acquire`; not set if the call site is not recorded."""
    notes: Notes | None
    trace: Trace
    """The call site of `acquire`; not set if it is not recorded."""

    @classmethod
    def new(cls) -> Self:
        """Create a lease that has no holder yet."""
        lease = cls()
        lease.holder = lease.notes = None
        return lease

    def annotate(self) -> Notes:
        """Return the notes, to be changed."""
        if self.notes is None:
            self.notes = Notes()
        return self.notes

    @property
    def may_leak(self) -> bool:
        """Whether it is to be reported as a leak if it lasts too long."""
        return not self.is_shared and (self.notes is None or not self.notes.is_reported)

    def forget_task(self) -> None:
        """Keep only the texts of a holder that has ended.

        The task's result, or the label's callable, may be the last reference to the connection.
        """
        assert isinstance(self.holder, asyncio.Task), "bug: a holder's end noted twice"
        self.annotate().label = self.label
        self.holder = self.holder.get_name()
        if hasattr(self, "label_note"):
            del self.label_note

    @property
    def holder_name(self) -> str:
        """The holder, with its label, for messages."""
        if self.holder is None:
            return "(one-shot statements)"
        if isinstance(self.holder, str):
            return f"{labelled(self.label, self.holder)} (ended)"
        return labelled(self.label, self.holder.get_name())

    @property
    def label(self) -> str:
        """The label of the task that has the connection; empty if it has none.

        It is the label of now, unless the one of the lease's beginning has ended since then.
        """
        if not isinstance(self.holder, asyncio.Task):
            return "" if self.notes is None else self.notes.label
        note: Note | None = getattr(self, "label_note", None)
        return label_of(self.holder) if note is None or not note.has_ended else shown(note)

    def borrowed_at(self) -> list[str]:
        """Return the call sites of `acquire`, innermost first; empty if not recorded."""
        return lines(getattr(self, "trace", ()))


class ManualLease(Lease):
    """A lease made outside a context manager, until one takes it over."""

    __slots__ = ("is_manual",)

    @classmethod
    def new(cls) -> Self:
        """See `Lease`."""
        lease = super().new()
        lease.is_manual = True
        return lease


class SharedLease(Lease):
    """The lease of a channel that carries the one-shot statements of several tasks."""

    __slots__ = ()
    is_shared = True


SHARED_LEASE = SharedLease.new()
"""The lease of every such channel: it has no state."""


class StandingLease(SharedLease):
    """A lease that is meant to last, as that of a connection which listens for notifications."""

    __slots__ = ()
    is_standing = True


class NoLease(Lease):
    """The lease of an entry that nobody has, or that is being handed over."""

    __slots__ = ()
    may_leak = False
    holder_name = "(being handed over)"
    label = ""


NO_LEASE = NoLease.new()
