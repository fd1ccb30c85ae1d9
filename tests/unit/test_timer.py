"""The timer of the pool."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from contextvars import ContextVar

from asyncpool._core.timer import Timer
from tests.unit._tools import now, timers, virtual_time

variable: ContextVar[str] = ContextVar("variable", default="empty")


class Owner:
    """Records the calls of its timer."""

    def __init__(self) -> None:
        self.timer = Timer(self._on_timer)
        self.calls: list[tuple[float, float]] = []

    def _on_timer(self, due: float) -> None:
        assert self.timer.at == math.inf
        assert variable.get() == "empty"
        self.calls.append((now(), due))


@virtual_time
async def test_the_method_is_called_once_at_the_instant_set_last() -> None:
    """The call gets that instant, and runs in an empty context."""
    owner = Owner()
    variable.set("a request's")
    owner.timer.set(5.0)
    owner.timer.set(3.0)
    assert owner.timer.at == 3.0
    await asyncio.sleep(10.0)
    assert owner.calls == [(3.0, 3.0)]


@virtual_time
async def test_a_cancelled_timer_does_not_call() -> None:
    """The timer can be set again, and cancelled when it is not set."""
    owner = Owner()
    owner.timer.cancel()
    owner.timer.set(1.0)
    owner.timer.cancel()
    assert owner.timer.at == math.inf
    assert timers() == []
    await asyncio.sleep(2.0)
    owner.timer.set(4.0)
    await asyncio.sleep(3.0)
    assert owner.calls == [(4.0, 4.0)]


@virtual_time
async def test_the_event_loop_does_not_keep_the_owner_alive() -> None:
    """The call of a collected owner does nothing."""
    owner = Owner()
    owner.timer.set(1.0)
    calls, gone = owner.calls, weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
    await asyncio.sleep(2.0)
    assert calls == []
