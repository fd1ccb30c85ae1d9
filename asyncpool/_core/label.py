"""Labels: what a task does and for whom, such as a route, shown wherever the task is named.

A label costs an acquire nothing: it is looked up in the task's context when something is shown.
Only a pool that records where each connection is borrowed records the label there too, so that a
leak is reported by its label when the label's block has long ended.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar, Token
from types import TracebackType
from typing import Any, Self

Text = str | Callable[[], str]
MAX_LENGTH = 200
"""Characters of a label that are shown."""


class Note:
    """A label in a context."""

    __slots__ = ("has_ended", "is_default", "text")

    def __init__(self, text: Text, *, is_default: bool) -> None:
        self.text = text
        self.is_default = is_default
        """Whether it yields to one that is not a default."""
        self.has_ended = False
        """Whether it was the label of a block that has ended."""


NO_LABEL = Note("", is_default=True)
_NOTE: ContextVar[Note] = ContextVar("asyncpool_label", default=NO_LABEL)
current_note = _NOTE.get
"""Return the label of the running code; `shown` formats it."""
_LAST: weakref.WeakKeyDictionary[asyncio.Task[Any], Note] = weakref.WeakKeyDictionary()
"""The last label of each task whose block has ended."""


class label:  # noqa: N801 - used like a function
    """Label what the current task does from now on; as a `with` block, until its end.

    The label is shown before the task's name wherever the pool says who has a connection or waits
    for one. Tasks that are created meanwhile have the label too. A pool with a `leak_timeout`
    knows the label of a lease that outlasts the block.

    Args:
        text: such as "nightly report", or a callable that returns the text when it is shown. A
            task keeps its last callable.
        default: whether this label yields to one that is not a default. Of two defaults the later
            one holds: a task may serve one request after another.
    """

    _token: Token[Note] | None = None

    def __init__(self, text: Text, *, default: bool = False) -> None:
        if default and not _NOTE.get().is_default:
            return
        self._note = Note(text, is_default=default)
        self._token = _NOTE.set(self._note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._token is None:
            return
        with suppress(ValueError):  # the end of an async generator may run in another context
            _NOTE.reset(self._token)
        self._note.has_ended = True
        if (task := _current_task()) is not None:
            _LAST[task] = self._note


def label_of(task: asyncio.Task[Any]) -> str:
    """Return the label of a task, or the last label of one that has ended; empty if it has none."""
    context = _context_of(task)
    note = NO_LABEL if context is None else context.get(_NOTE, NO_LABEL)
    return shown(_LAST.get(task, note) if task.done() and note is NO_LABEL else note)


def shown(note: Note) -> str:
    """Return the text of a label; empty if there is none, or if its callable fails."""
    text = note.text
    try:
        found = str(text() if callable(text) else text)
    except Exception:  # noqa: BLE001 - an application's callable, called to explain something else
        return ""
    # The path of a request may have line breaks in it, which would forge lines of a log.
    plain = "".join(each if each.isprintable() else "\ufffd" for each in found[:MAX_LENGTH])
    return plain if len(found) <= MAX_LENGTH else f"{plain}..."


def named(task: asyncio.Task[Any]) -> str:
    """Return the label and the name of a task, such as "GET /orders in Task-7"."""
    return labelled(label_of(task), task.get_name())


def labelled(text: str, name: str) -> str:
    """Return a name with the label before it, if there is one."""
    return f"{text} in {name}" if text else name


def _context_of(task: asyncio.Task[Any]) -> Context | None:
    if sys.version_info >= (3, 12):
        return task.get_context()
    # A task's own context comes before those of its callbacks.
    return next((each for each in gc.get_referents(task) if isinstance(each, Context)), None)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
