"""The watch: looks at each host about once a second, each in a task of its own.

A host that hangs delays no other. The tasks hold the state of the cluster, but not the cluster, so
that a dropped one is collected.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio

from asyncpool._cluster.addresses import listed_by
from asyncpool._cluster.host import Host
from asyncpool._cluster.knock import answers
from asyncpool._cluster.members import Members
from asyncpool._cluster.pools import HostBusy, HostDown, HostPool
from asyncpool._core.background import BackgroundTasks
from asyncpool._core.redact import describe
from asyncpool.errors import PoolClosed, PoolError, PoolForked, PoolWrongLoop

LIMIT = 1.0
"""Seconds that a look may take."""
INTERVAL = 1.0
"""Seconds from the beginning of a look to the next one."""
DOWN_INTERVAL = 0.5
"""The same while the host or the primary is down."""
SEARCH_INTERVAL = 0.2
"""The same while the primary has been down for a short time, at a host that may be promoted."""
QUIET = 0.3
"""Seconds in which a host with reads under way serves no other one, after which a look is due."""
PAUSE = 0.1
"""The shortest time from the end of a look to the next one."""

_watches: weakref.WeakSet[Watch] = weakref.WeakSet()
_inherited: list[object] = []
"""The parent's tasks in a forked child, which must not be collected there."""


class Watch:
    """Looks at the hosts of one cluster while it is open.

    Args:
        members: gets what is found.
        source: lists the hosts; None: the list does not change.
        lazy: whether the first use opens the cluster.
    """

    def __init__(self, members: Members, source: Callable[[], Any] | None, *, lazy: bool) -> None:
        self.members = members
        self.lazy = lazy
        self.home: asyncio.AbstractEventLoop | None = None
        """The event loop on which it runs; None before and after that."""
        self.closed = False
        self.leaving: set[HostPool[Any]] = set()
        """The pools of hosts that are no longer in the list, until they are closed."""
        self.after_look: weakref.WeakMethod[Callable[[], None]] | None = None
        """A method to call after each look."""
        self._source = source
        self._forked = False
        self._tasks = BackgroundTasks(members.name)
        members.on_leave = self._leave
        _watches.add(self)

    def enter(self) -> None:
        """Start the watch where the first use does so, or raise an error for a use here.

        Raises:
            PoolClosed, PoolForked, PoolWrongLoop: the cluster cannot be used here.
        """
        name = self.members.name
        if self.closed:
            msg = f"cluster {name!r} is already closed, and cannot be reused: make a new one"
            raise PoolClosed(msg)
        self.require_this_loop()
        if self.home is asyncio.get_running_loop():
            return
        if self._forked:
            msg = f"cluster {name!r} was opened before a fork: await cluster.open() in the child"
            raise PoolForked(msg)
        if not self.lazy:
            msg = f"cluster {name!r} is not open yet: use `async with cluster` or cluster.open()"
            raise PoolClosed(msg)
        self.start()

    def require_this_loop(self) -> None:
        """Raise PoolWrongLoop if the cluster is open on another event loop."""
        home = self.home
        if home is not None and home is not asyncio.get_running_loop() and not home.is_closed():
            msg = f"cluster {self.members.name!r} is open on another event loop: use one per loop"
            raise PoolWrongLoop(msg)

    def start(self) -> None:
        """Start the watch on the running event loop, if it does not run there."""
        loop = asyncio.get_running_loop()
        if self.closed or (self.home is not None and not self.home.is_closed()):
            self.enter()
            return
        if self.home is not None:
            self._tasks.force_close()
            self.leaving.clear()
        self.members.forget()
        self.home, self._forked = loop, False
        for host in self.members.all():
            self._tasks.spawn(self._follow(host), host.name)
        if self._source is not None:
            self._tasks.spawn(self._list(self._source), "hosts")

    async def stop(self) -> None:
        """End all tasks."""
        home, self.home, self.closed = self.home, None, True
        self.members.changes.wake()
        if home is asyncio.get_running_loop():
            await self._tasks.stop(2.0)
        elif home is not None and home.is_closed():
            self._tasks.force_close()

    def spawn(self, work: Coroutine[Any, Any, None], job: str) -> None:
        """Start a task that ends with the watch."""
        self._tasks.spawn(work, job)

    def abandon(self) -> None:
        """End all tasks without waiting, for a cluster that was dropped."""
        self.closed = True
        if self.home is not None:
            if self.home.is_closed():
                self._tasks.force_close()
            else:
                with suppress(RuntimeError):
                    self.home.call_soon_threadsafe(self._tasks.cancel_all)

    def abandon_in_child(self) -> None:
        """Forget the parent's tasks after a fork."""
        if self.home is not None and not self.closed:
            _inherited.append(self._tasks)
            self._tasks = BackgroundTasks(self.members.name)
            self.home, self._forked = None, True
            self.members.forget()

    def _leave(self, host: Host) -> None:
        """Stop looking at a host that is no longer in the list, and close its pool."""
        for task in self._tasks.running(host.name):
            task.cancel()
        if host.pool.is_open:
            self.leaving.add(host.pool)
            self._tasks.spawn(self._close(host.pool), "close")

    async def _close(self, pool: HostPool[Any]) -> None:
        """Close a pool as soon as all its connections were returned."""
        while pool.retire():  # noqa: ASYNC110 - the ends of leases have no event
            await asyncio.sleep(DOWN_INTERVAL)
        await pool.close()
        self.leaving.discard(pool)

    async def _follow(self, host: Host) -> None:
        """Look at one host until the task is cancelled."""
        loop = asyncio.get_running_loop()
        with suppress(PoolError):
            await host.pool.open()
        while True:
            began = loop.time()
            host.trouble.clear()
            try:
                await self._look(host)
            except PoolClosed:
                if self.closed or host.pool.closed:
                    return
            except Exception as error:  # noqa: BLE001 - it is logged, and the next look follows
                self.members.note_down(host, HostDown(describe(error)))
            host.looked_from = began
            if self.after_look is not None and (method := self.after_look()) is not None:
                method()
                del method
            await asyncio.sleep(PAUSE)
            await self._rest(host, began + self._interval(host))

    async def _rest(self, host: Host, until: float) -> None:
        """Wait until the next look is due: sooner if the host fails, or falls silent under load."""
        loop = asyncio.get_running_loop()
        while (left := until - loop.time()) > 0:
            served = host.pool.served
            with anyio.move_on_after(min(left, QUIET)):
                await host.trouble.wait()
                return
            if host.reads.under_way and host.pool.served == served:
                return

    def _interval(self, host: Host) -> float:
        """Return the seconds from the beginning of a look at a host to the next one."""
        if host.error is None and self.members.expects_promotion:
            return SEARCH_INTERVAL
        primary = self.members.primary
        is_well = host.error is None and primary is not None and primary.error is None
        return INTERVAL if is_well else DOWN_INTERVAL

    async def _look(self, host: Host) -> None:
        loop, members = asyncio.get_running_loop(), self.members
        began, served = loop.time(), host.pool.served
        try:
            sight = await host.pool.look(LIMIT)
        except HostDown as why:
            members.note_down(host, why)
        except HostBusy:
            serves = host.pool.served > served
            if serves or await answers(host.address, LIMIT):
                members.note_busy(host, began, serves=serves)
            else:
                members.note_down(host, HostDown(f"no answer within {LIMIT:g} s"))
        else:
            members.note_sight(host, sight)

    async def _list(self, source: Callable[[], Any]) -> None:
        """Ask for the hosts about each second."""
        failed = ""
        while True:
            try:
                addresses = await listed_by(source)
                for host in self.members.set_addresses(addresses):
                    self._tasks.spawn(self._follow(host), host.name)
                failed = ""
            except Exception as error:  # noqa: BLE001 - it is logged, and the list stays
                if (said := describe(error)) != failed:
                    failed, text = said, f"the hosts could not be listed: {said}"
                    self.members.changes.record("hosts unknown", text, logging.WARNING)
            await asyncio.sleep(INTERVAL)


def _abandon_in_child() -> None:
    for watch in list(_watches):
        watch.abandon_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
