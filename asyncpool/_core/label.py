"""Labels: what a task does and for whom, such as a route, shown wherever the task is named.

A label costs an acquire nothing: it is looked up in the task's context when something is shown.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

Text = str | Callable[[], str]
MAX_LENGTH = 200
"""Characters of a label that are shown."""

_LABEL: ContextVar[tuple[Text, bool]] = ContextVar("asyncpool_label", default=("", True))
"""The label, and whether it is a default."""
_OF_TASKS: weakref.WeakKeyDictionary[asyncio.Task[Any], Text] = weakref.WeakKeyDictionary()
"""The labels by task, for Python 3.11, where the context of another task cannot be read."""
READS_CONTEXTS = sys.version_info >= (3, 12)


class label:  # noqa: N801 - used like a function
    """Label what the current task does from now on; as a `with` block, until its end.

    The label is shown before the task's name wherever the pool says who has a connection or waits
    for one. Tasks that are created meanwhile have the label too (not in Python 3.11).

    Args:
        text: such as "nightly report", or a callable that returns the text when it is shown.
        default: whether this label yields to one that is not a default. Of two defaults the later
            one holds: a task may serve one request after another.
    """

    _token: Token[tuple[Text, bool]] | None = None
    _task: asyncio.Task[Any] | None = None

    def __init__(self, text: Text, *, default: bool = False) -> None:
        _, replaceable = _LABEL.get()
        if default and not replaceable:
            return
        self._token = _LABEL.set((text, default))
        if not READS_CONTEXTS:
            self._task = _current_task()
        if self._task is not None:
            self._before = _OF_TASKS.get(self._task, "")
            _OF_TASKS[self._task] = text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._token is not None:
            with suppress(ValueError):  # the end of an async generator may run in another context
                _LABEL.reset(self._token)
        if self._task is not None:
            _OF_TASKS[self._task] = self._before


def label_of(task: asyncio.Task[Any]) -> str:
    """Return the label of a task; empty if it has none."""
    if sys.version_info >= (3, 12):
        text, _ = task.get_context().get(_LABEL, ("", True))
    else:
        text = _OF_TASKS.get(task, "")
    try:
        shown = str(text() if callable(text) else text)
    except Exception:  # noqa: BLE001 - an application's callable, called to explain something else
        return ""
    # The path of a request may have line breaks in it, which would forge lines of a log.
    plain = "".join(each if each.isprintable() else "\ufffd" for each in shown[:MAX_LENGTH])
    return plain if len(shown) <= MAX_LENGTH else f"{plain}..."


def named(task: asyncio.Task[Any]) -> str:
    """Return the label and the name of a task, such as "GET /orders in Task-7"."""
    text, name = label_of(task), task.get_name()
    return f"{text} in {name}" if text else name


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
