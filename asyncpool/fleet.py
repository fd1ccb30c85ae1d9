"""`Fleet`: one server's connections, shared by all processes that use it.

It is a budget whose limit the processes agree on through the server itself. About once a second
each publishes what it needs in the names of its sessions, and looks at those of the others; the
rule in `_fleet/rule.py` then says what it may have. There is no task: a timer starts each look,
which runs on a connection that a pool has.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import weakref
from contextvars import Context
from typing import Any

import psycopg

from asyncpool._core.budget import Budget, SupportsLedger, SupportsRefill
from asyncpool._core.redact import describe
from asyncpool._core.settings import count
from asyncpool._core.timer import Timer
from asyncpool._fleet import pace
from asyncpool._fleet.demand import needed
from asyncpool._fleet.look import BehindPooler, View, look
from asyncpool._fleet.mark import SessionMarks, require_valid
from asyncpool._fleet.rule import VALID, Grant, Member, grant, share
from asyncpool._fleet.stats import FleetStats

__all__ = ["Fleet", "FleetStats"]


class Fleet(Budget):
    """A budget that processes share: `AsyncConnectionPool(..., budget=Fleet("shop"))`.

    All processes that make a fleet with the same name on one server share the connections which the
    server leaves to it: `max_connections`, reserved places, the limits of role and database, less
    the connections of others. Each gets what it needs; if that is more than there is, its fair
    share. `max_size` limits each pool as well. Nothing is written to the server but the
    `application_name` of the sessions, and every role may do that. A process needs one fleet for
    all its pools on a server; it is used on one event loop at a time.

    Behind a pooler, which hides the others' sessions, only the pools' sizes hold: the log says so.

    Args:
        name: 1 to 20 letters, digits, hyphens and underscores; equal for all that share.
        reserve: the places that nobody grows into, for the first connections of new processes.
            More new ones than that at a time wait until the others have made room.
        weight: how many shares this process gets, from 0.01 to 99.99.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """

    _longest_pause = 0.25
    marks: SessionMarks
    _view: View | None
    """The result of the last look; None before the first one."""
    _grant: Grant | None
    """The result of the rule for it."""
    _limit: int
    _valid_until: float
    """The instant at which the claim ends."""
    _looked_at: float
    _pace: pace.Pace
    """Says how long until the next look."""
    _asked: bool
    """Whether a connection is sought to look on."""
    _looking: bool
    """Whether a look is under way."""

    def __init__(self, name: str, *, reserve: int = 3, weight: float = 1.0) -> None:
        super().__init__(1)
        require_valid(name, weight)
        self._name, self._weight = name, round(float(weight), 2)
        self._reserve = count("reserve", reserve)
        self.marks = SessionMarks(name, self._weight)
        self._timer = Timer(self._on_timer)
        """Set to the next look."""
        self._blind_reason = ""
        """Why the member sees nobody; else empty."""
        self._looks = 0
        self._error: str | None = None
        self._failures = 0
        """Looks in a row whose statement has failed."""
        self._forget()
        _fleets.add(self)

    @property
    def name(self) -> str:
        """The name of the fleet."""
        return self._name

    def __repr__(self) -> str:
        sizes = f"size={self._size}/{'unlimited' if self._blind_reason else self._limit}"
        return f"<Fleet {self._name!r} {sizes} members={self._count}>"

    def stats(self) -> FleetStats:
        """Return what the last look has shown, and the sizes now."""
        view = self._view
        known = 0 if view is None else sum(each.size for each in self._members_in(view).values())
        return FleetStats(
            name=self._name,
            member=self.marks.member,
            weight=self._weight,
            sees=not self._blind_reason,
            limit=None if self._blind_reason else self._limit,
            share=0 if self._grant is None else self._grant.target,
            size=self._size,
            members=self._count,
            fleet_size=known or self._size,
            places=0 if view is None else view.places,
            reserve=self._reserve,
            others=0 if view is None else view.others,
            last_look=None if self._looked_at == -math.inf else self._now() - self._looked_at,
            looks=self._looks,
            error=self._error,
        )

    def describe(self) -> str:
        """Return how much of it is used, for `explain()`."""
        return str(self.stats())

    # Called by the pools, as those of Budget

    def _join(self, member: SupportsRefill) -> None:
        before = self._home
        super()._join(member)
        if self._home is not before:
            self._timer.cancel()
            self._forget()
        self._request_look()

    def _leave(self, ledger: SupportsLedger, *, forked: bool = False) -> None:
        super()._leave(ledger, forked=forked)
        if self._members or forked or self._home is None:
            return
        self._forget()
        if asyncio._get_running_loop() is self._home or self._home.is_closed():
            self._timer.cancel()
        else:  # the garbage collector may call this in another thread
            self._home.call_soon_threadsafe(self._timer.cancel, context=Context())

    def _note_removed(self, ledger: SupportsLedger) -> None:
        super()._note_removed(ledger)
        if not self._members:
            return
        if not self._size:
            self._forget()  # the server may have been restarted
        elif self._view is None or self._blind_reason or self.marks.is_published:
            return
        elif self._limit > self._size:  # the others do not see the claim any more
            self._limit = self._size
            self._valid_until = self._now() + (VALID if self._resting else 0.0)
        if not self._asked:
            self._request_look()

    def _least_for(self, ledger: SupportsLedger) -> int:
        """Return how many connections a pool opens before any request waits, if it can."""
        least = ledger.settings.min_size
        if self._view is None:
            return least
        return min(least, len(ledger.entries) + max(self._limit - self._size, 0))

    def _room_for(self, ledger: SupportsLedger) -> int:
        """Return how many connections a pool may open now."""
        self._end_claim()
        return super()._room_for(ledger)

    def _end_claim(self) -> None:
        """End the claim if the last look is long ago, as the others do; then allow one more.

        That one looks first. Else a request would wait for as long as all connections are in use.
        """
        now = self._now()
        if now >= self._valid_until and asyncio._get_running_loop() is self._home:
            self._limit, self._valid_until = self._size + 1, now + VALID
            self._request_look()

    def _set_shortage(self, ledger: SupportsLedger, number: int) -> None:
        super()._set_shortage(ledger, number)
        if ledger in self._shortage and not (self._asked or self._looking or self._blind_reason):
            at = self._looked_at + self._pace.pause
            if self._timer.at > at:
                self._timer.set(max(at, self._now()))

    # The look

    def _on_timer(self, _: float) -> None:
        self._end_claim()
        self._request_look()
        self._offer()

    def _request_look(self) -> None:
        """Have a connection looked on: an idle one, else the first that comes."""
        if asyncio._get_running_loop() is not self._home:
            return
        if self._looking:  # the claim ends, however long that takes
            self._timer.set(min(self._valid_until, self._now() + pace.RETRY))
            return
        self._asked, at = True, self._now() + pace.RETRY
        self._timer.set(min(at, self._valid_until) if self._valid_until > self._now() else at)
        for member in self._resting[:1] or list(self._members.values()):
            member.ask(self._look)

    @property
    def _resting(self) -> list[SupportsRefill]:
        """The pools with an idle connection."""
        return [member for ledger, member in self._holders.items() if ledger.idle]

    async def _look(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Look on a connection, unless another one was faster."""
        if not self._asked or self._looking:
            return
        self._asked, self._looking = False, True
        member = self.marks.member
        is_new = self._view is None and any(each.settings.keeps_idle for each in self._members)
        try:
            for _ in range(pace.TURNS):
                await self._look_on(conn)
                # Again at once, because soon all connections may be in use for long.
                if not (self._may_grow and (is_new or self._shortage)):
                    break
        finally:
            if member == self.marks.member:  # else the process has forked meanwhile
                self._looking = False
                self._plan_next()

    async def _look_on(self, conn: psycopg.AsyncConnection[Any]) -> None:
        began, want, claim = self._now(), self._want(), self._next_claim()
        if claim < self._limit and not self._blind_reason:
            self._limit = max(claim, self._size)  # first, so that no more is used than published
        try:
            self._apply(await look(conn, self.marks, want, claim), claim, began)
        except BehindPooler:
            self._go_blind("a pooler is between this process and the server")
        except Exception as error:
            self._error = describe(error)
            if conn.closed:
                raise
            self._failures += 1
            forbidden = psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction
            unseen = self._failures >= pace.FAILURES and not self._looks
            if unseen or isinstance(error, forbidden):
                self._go_blind(self._error)

    def _plan_next(self) -> None:
        if self._members:
            blind, short = bool(self._blind_reason), bool(self._shortage)
            after = self._pace.after_look(blind=blind, short=short, grows=self._may_grow)
            self._timer.set(self._now() + after)

    @property
    def _may_grow(self) -> bool:
        """Whether the next look will allow more connections, if nothing changes."""
        given = self._grant
        return given is not None and self._error is None and given.next > given.limit

    def _apply(self, view: View, claim: int, began: float) -> None:
        """Set the limit by what a look has shown.

        Args:
            view: what it has shown.
            claim: what was published before.
            began: the instant before that.
        """
        before, members = self._count, self._members_in(view)
        places, me = view.places - self._reserve, self.marks.member
        self._grant = given = grant(places, members, me, claim)
        self._view, self._looks, self._looked_at = view, self._looks + 1, self._now()
        self._failures, self._error = 0, None
        if self._blind_reason:
            self._blind_reason, self.marks.silent = "", False
            self._record("the other processes can be seen again", logging.WARNING)
        self._valid_until = began + VALID
        if given.limit < min(self._size, self._limit):
            self._record(f"gives back {self._size - given.limit} of {self._size} connections")
        if self._count != before:
            self._record(f"members: {self._count}, sharing {places} places; limit {given.limit}")
        self._set_limit(given.limit)
        for member in list(self._members.values()):
            member.readiness.wake()

    def _next_claim(self) -> int:
        """Return the claim to publish with the next look, by what the last one has shown."""
        ledgers = list(self._members)
        most = sum(ledger.settings.max_size for ledger in ledgers)
        if self._view is None or self._now() - self._looked_at > VALID:
            first = sum(ledger.settings.min_size for ledger in ledgers)
            return min(max(self._size + self._want(), first, self._size), most)
        places = self._view.places - self._reserve
        return min(share(places, self._members_in(self._view), self.marks.member).claim, most)

    def _want(self) -> int:
        """Return how many connections more the pools need; negative: some are not used."""
        latest = self._now() - pace.RECENT
        return sum(needed(ledger, latest) for ledger in list(self._members)) - self._size

    def _members_in(self, view: View) -> dict[str, Member]:
        """Return the members of a view, this one as it is now."""
        own = Member(self._size, self._weight, self._want())
        return {**view.members, self.marks.member: own}

    def _go_blind(self, why: str) -> None:
        if not self._blind_reason:
            text = "the other processes cannot be seen, so only the pools' own sizes limit them"
            self._record(f"{text}: {why}", logging.WARNING)
        self._blind_reason, self._error, self._valid_until = why, why, math.inf
        self.marks.silent = True
        self._set_limit(pace.UNLIMITED)

    def _forget(self) -> None:
        """Begin anew: with one connection, which looks first."""
        self._limit, self._valid_until = 1, self._now() + VALID
        if self._blind_reason:
            self._limit, self._valid_until = pace.UNLIMITED, math.inf
        self._view = self._grant = None
        self._looked_at, self._pace = -math.inf, pace.Pace()
        self._asked = self._looking = False

    def _become_another(self) -> None:
        """Be a member of its own in a forked process."""
        self._timer = Timer(self._on_timer)  # the other belongs to the parent's event loop
        self.marks.renew()
        self._forget()

    @property
    def _count(self) -> int:
        return 0 if self._view is None else len(self._members_in(self._view))

    def _now(self) -> float:
        return 0.0 if self._home is None else self._home.time()

    def _record(self, text: str, level: int = logging.INFO) -> None:
        for member in list(self._members.values()):
            member.runtime.record("shares", f"fleet {self._name!r}: {text}", level)


_fleets: weakref.WeakSet[Fleet] = weakref.WeakSet()


def _renew_in_child() -> None:
    for fleet in list(_fleets):
        fleet._become_another()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
