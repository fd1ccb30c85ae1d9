"""The ledger: which entry is leased, how many to open, what is due; no event loop runs here."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from asyncpool._core import ledger as _ledger
from asyncpool._core.admission import Decided
from asyncpool._core.entry import RETIRED, Entry, State
from asyncpool._core.lease import NO_LEASE, Lease, SharedLease
from asyncpool._core.ledger import Ledger
from asyncpool._core.maintenance import next_due
from asyncpool._core.settings import Settings
from asyncpool._core.waiter import Waiter
from tests.unit._tools import join

Books = Ledger[str]
LONG = 1e6


def overdue(waiter: Waiter[Any], is_late: bool) -> BaseException:
    raise AssertionError(f"no time passes here: {waiter}")


def make_ledger(min_size: int = 0, max_size: int = 4, **numbers: Any) -> Books:
    rest = {"max_lifetime": LONG, "max_idle": LONG, "ping_interval": LONG} | numbers
    return Ledger(Settings("test", min_size, max_size, **rest), overdue)


def add(ledger: Books, conn: str, now: float = 0.0, expires_at: float = math.inf) -> Entry[str]:
    """Open a connection and put it into service."""
    entry = ledger.reserve(now)
    ledger.opened(entry, conn, now, expires_at)
    assert ledger.give(entry, now)
    return entry


def lend(ledger: Books, now: float = 0.0) -> Entry[str]:
    return ledger.take(now, Lease.new())


def take_back(ledger: Books, entry: Entry[str], now: float) -> bool:
    """Release a clean connection."""
    assert ledger.take_back(entry.conn) is entry
    entry.used_at = now
    return ledger.give(entry, now)


class TestLaws:
    def test_an_entry_goes_to_a_waiter_before_it_is_idle(self) -> None:
        """First law: idle connections and waiters are never both present."""
        ledger = make_ledger()
        waiter = join(ledger.queue, 0.0, math.inf)
        entry = add(ledger, "a", 1.0)
        assert waiter.served is entry
        assert ledger.idle == []
        assert (entry.state, entry.leased_at, entry.uses) == (State.LEASED, 1.0, 1)
        assert ledger.leased == {"a": entry}

    def test_an_entry_counts_from_its_reservation_until_it_is_removed(self) -> None:
        """Second law: size is the number of entries, in every state."""
        ledger = make_ledger()
        entry = ledger.reserve(0.0)
        sizes = [ledger.size]
        ledger.opened(entry, "a", 0.0, math.inf)
        sizes.append(ledger.size)
        ledger.give(entry, 0.0)
        lend(ledger)
        sizes.append(ledger.size)
        ledger.withdraw(entry, State.CLOSING)
        sizes.append(ledger.size)
        ledger.remove(entry)
        assert (sizes, ledger.size) == ([1, 1, 1, 1], 0)

    def test_nothing_in_the_ledger_awaits(self) -> None:
        """Third law: no cancellation can interrupt a step."""
        functions = vars(Ledger) | vars(_ledger)
        assert not [each for each in functions.values() if inspect.iscoroutinefunction(each)]

    @pytest.mark.parametrize(
        ("min_size", "max_size", "idle", "opening", "waiting", "wanted"),
        [
            (0, 4, 0, 0, 0, 0),
            (2, 4, 0, 0, 0, 2),
            (2, 4, 0, 2, 0, 0),
            (2, 4, 2, 0, 0, 0),
            (0, 4, 0, 0, 1, 1),
            (0, 4, 0, 1, 1, 0),
            (0, 4, 0, 1, 3, 2),
            (0, 4, 0, 0, 9, 4),
            (0, 4, 0, 3, 9, 1),
            (0, 4, 0, 4, 9, 0),
            (4, 4, 0, 0, 1, 4),
        ],
    )
    def test_one_rule_says_how_many_to_open(  # noqa: PLR0917
        self, min_size: int, max_size: int, idle: int, opening: int, waiting: int, wanted: int
    ) -> None:
        """Fourth law: min(max_size - size, max(min_size - size, waiting - opening))."""
        ledger = make_ledger(min_size, max_size)
        for number in range(idle):
            add(ledger, f"conn {number}")
        for _ in range(opening):
            ledger.reserve(0.0)
        for _ in range(waiting):
            join(ledger.queue, 0.0, math.inf)
        assert ledger.wanted() == wanted

    def test_a_closing_connection_counts_until_it_is_closed(self) -> None:
        """The rule counts backends, not usable connections."""
        ledger = make_ledger(max_size=1)
        entry = add(ledger, "a")
        ledger.withdraw(entry, State.CLOSING)
        join(ledger.queue, 0.0, math.inf)
        assert ledger.wanted() == 0
        ledger.remove(entry)
        assert ledger.wanted() == 1

    def test_a_late_connect_does_not_count_for_a_waiter(self) -> None:
        """Another one is opened for the waiter; the late one still counts in the size."""
        ledger = make_ledger(max_size=2)
        join(ledger.queue, 0.0, math.inf)
        entry = ledger.reserve(0.0)
        assert ledger.wanted() == 0
        ledger.mark_late(entry)
        assert ledger.wanted() == 1
        other = ledger.reserve(0.0)
        assert ledger.wanted() == 0
        ledger.remove(entry)
        assert (ledger.opening, ledger.late) == (1, 0)
        ledger.opened(other, "a", 0.0, math.inf)
        assert (ledger.opening, ledger.late) == (0, 0)

    def test_a_waiter_that_leaves_needs_no_connection(self) -> None:
        """The rule counts current waiters."""
        ledger = make_ledger()
        waiter = join(ledger.queue, 0.0, math.inf)
        ledger.queue.leave(waiter)
        assert ledger.wanted() == 0

    def test_reserving_above_max_size_is_a_bug(self) -> None:
        """An impossible state is an assertion."""
        ledger = make_ledger(max_size=1)
        ledger.reserve(0.0)
        with pytest.raises(AssertionError, match="above max_size"):
            ledger.reserve(0.0)

    @pytest.mark.parametrize("state", ["opening", "idle", "leased", "cleaning", "closing"])
    def test_an_entry_can_be_removed_in_any_state(self, state: str) -> None:
        """Fifth law: there is one way out, and it clears every record of the entry."""
        ledger = make_ledger()
        entry = ledger.reserve(0.0)
        if state != "opening":
            ledger.opened(entry, "a", 0.0, math.inf)
        if state in ("idle", "leased"):
            ledger.give(entry, 0.0)
        if state == "leased":
            assert lend(ledger).lease is not NO_LEASE
        if state == "closing":
            ledger.withdraw(entry, State.CLOSING)
        assert entry.state.value == state
        ledger.remove(entry)
        left = (ledger.size, ledger.opening, ledger.closing, ledger.idle, ledger.leased)
        assert left == (0, 0, 0, [], {})
        assert entry.state is State.CLOSED
        assert entry.lease is NO_LEASE


class TestTakeAndGive:
    def test_the_most_recently_used_connection_is_leased_first(self) -> None:
        """Surplus connections stay unused and can be closed."""
        ledger = make_ledger()
        first, second = add(ledger, "a", 0.0), add(ledger, "b", 1.0)
        assert lend(ledger) is second
        assert lend(ledger) is first
        assert not ledger.idle

    def test_a_returned_connection_is_the_next_to_be_leased(self) -> None:
        """The order is that of the last use, not of opening."""
        ledger = make_ledger()
        first, second = add(ledger, "a"), add(ledger, "b")
        lend(ledger)
        lend(ledger)
        take_back(ledger, second, 1.0)
        take_back(ledger, first, 2.0)
        assert ledger.idle == [second, first]

    def test_a_pinged_connection_goes_back_to_its_place(self) -> None:
        """A ping is not a use, so it does not change the order."""
        ledger = make_ledger()
        entries = [add(ledger, name, float(at)) for at, name in enumerate("abc")]
        ledger.withdraw(entries[0], State.CLEANING)
        assert ledger.give(entries[0], 9.0)
        assert ledger.idle == entries

    def test_waiters_are_served_in_order(self) -> None:
        """The first waiter gets the first connection."""
        ledger = make_ledger()
        waiters = [join(ledger.queue, 0.0, math.inf) for _ in range(2)]
        entries = [add(ledger, "a"), add(ledger, "b")]
        assert [waiter.served for waiter in waiters] == entries

    def test_an_expired_connection_is_not_put_into_service(self) -> None:
        """The connection neither becomes idle nor goes to a waiter."""
        ledger = make_ledger()
        entry = add(ledger, "a", 0.0, expires_at=10.0)
        lend(ledger)
        waiter = join(ledger.queue, 0.0, math.inf)
        assert not take_back(ledger, entry, 10.0)
        assert waiter.served is None
        assert ledger.idle == []

    def test_taking_back_ends_the_lease_once(self) -> None:
        """A second call returns None, as for a foreign connection."""
        ledger = make_ledger()
        add(ledger, "a")
        entry = lend(ledger)
        assert ledger.take_back("a") is entry
        assert entry.state is State.CLEANING
        assert entry.lease is NO_LEASE
        assert ledger.take_back("a") is None
        assert ledger.take_back("stranger") is None

    def test_leases_of_closed_connections_still_count(self) -> None:
        """The number of requests served never decreases."""
        ledger = make_ledger()
        for name in ("a", "b"):
            entry = add(ledger, name)
            take_back(ledger, lend(ledger), 0.0)
            ledger.remove(entry)
        add(ledger, "c")
        lend(ledger)
        assert ledger.leases == 3

    def test_leases_that_served_no_request_do_not_count(self) -> None:
        """Also those whose connections are closed already."""
        ledger = make_ledger()
        for name in ("a", "b", "c"):
            add(ledger, name)
        closed = [lend(ledger), lend(ledger)]
        for entry in closed:
            ledger.remove(entry)
        kept = lend(ledger)
        counts = [ledger.leases]
        for entry in (*closed, kept):
            ledger.cancel_lease(entry)
            counts.append(ledger.leases)
        assert counts == [3, 2, 1, 0]

    def test_a_shared_lease_is_counted_by_its_requests(self) -> None:
        """Each request on it counts as a lease; the shared lease itself does not."""
        ledger = make_ledger()
        add(ledger, "a")
        for number in (1, 2):
            entry = lend(ledger)
            ledger.share(entry)
            assert entry.lease.is_shared
            assert (ledger.leases, ledger.ended_leases) == (0, 0)
            take_back(ledger, entry, float(number))
        entry = lend(ledger)
        assert (ledger.leases, ledger.ended_leases) == (1, 0)
        take_back(ledger, entry, 3.0)
        assert (ledger.leases, ledger.ended_leases) == (1, 1)

    def test_a_lease_that_is_meant_to_last_is_no_use(self) -> None:
        """It keeps its holder, and is counted as a shared one."""
        ledger = make_ledger()
        add(ledger, "a")
        entry = lend(ledger)
        entry.lease.holder = "the worker"
        lease = ledger.make_standing(entry)
        assert entry.lease is lease
        assert (lease.holder, lease.is_standing, lease.may_leak) == ("the worker", True, False)
        assert (ledger.leases, ledger.ended_leases) == (0, 0)
        take_back(ledger, entry, 1.0)
        assert (ledger.leases, ledger.ended_leases) == (0, 0)

    def test_requests_that_may_share_need_one_connection_together(self) -> None:
        """This holds while `needs_own_connection` is false; every other request needs its own."""

        class Read(Waiter[Any]):
            needs_own_connection = False

        ledger = make_ledger(max_size=10)
        reads = [Read(number, 0.0, math.inf) for number in range(3)]
        for read in reads:
            ledger.queue.admit(read)
        assert (ledger.waiting, ledger.wanted(), ledger.shortfall()) == (3, 1, 1)
        join(ledger.queue, 0.0, math.inf)
        assert (ledger.waiting, ledger.wanted(), ledger.shortfall()) == (4, 2, 2)
        for read in reads[:2]:
            read.needs_own_connection = True
        ledger.queue.recount()
        assert (ledger.waiting, ledger.wanted(), ledger.shortfall()) == (4, 4, 4)

    @pytest.mark.parametrize("uses", [0, 1])
    def test_where_none_is_kept_a_taker_gets_a_new_connection(self, uses: int) -> None:
        """What has been used is closed, since it would have to be reset for the taker."""
        taken: list[Entry[str]] = []
        ledger = make_ledger(keeps_idle=False)
        entry = ledger.reserve(0.0)
        ledger.opened(entry, "a", 0.0, math.inf)
        entry.uses = uses
        ledger.take_next(taken.append)
        assert ledger.give(entry, 1.0) is not bool(uses)
        assert taken == [entry][uses:]


class TestSizes:
    def test_a_resize_returns_the_idle_connections_above_max_size(self) -> None:
        """The least recently used ones are returned, and no more than necessary."""
        ledger = make_ledger(max_size=4)
        entries = [add(ledger, name, float(at)) for at, name in enumerate("abcd")]
        leased = lend(ledger)
        assert ledger.resize(0, 2) == entries[:2]
        assert leased is entries[3]
        assert ledger.wanted() == 0

    def test_after_a_resize_leased_connections_above_max_size_close_when_released(self) -> None:
        """This ends when the pool has its new size."""
        ledger = make_ledger(max_size=3)
        for name in "abc":
            add(ledger, name)
        leased = [lend(ledger) for _ in "abc"]
        assert ledger.resize(0, 2) == []
        assert not take_back(ledger, leased[0], 1.0)
        ledger.withdraw(leased[0], State.CLOSING)
        assert take_back(ledger, leased[1], 1.0)
        assert take_back(ledger, leased[2], 1.0)
        assert not ledger.oversize

    def test_what_was_decided_for_the_old_sizes_is_forgotten(self) -> None:
        """A larger pool may take requests that the smaller one refused."""
        ledger = make_ledger(max_size=2)
        ledger.queue.decided[1.0] = Decided()
        ledger.resize(0, 4)
        assert not ledger.queue.decided

    def test_a_closing_connection_does_not_make_the_pool_too_large(self) -> None:
        """Only connections that would stay count against the new size."""
        ledger = make_ledger(max_size=2)
        first, second = add(ledger, "a"), add(ledger, "b")
        ledger.withdraw(first, State.CLOSING)
        assert ledger.resize(0, 1) == []
        assert ledger.idle == [second]
        assert not ledger.oversize

    def test_after_a_resize_more_connections_are_wanted_at_once(self) -> None:
        """A larger `min_size` is filled; a larger `max_size` serves waiters."""
        ledger = make_ledger(max_size=1)
        ledger.resize(3, 3)
        assert ledger.wanted() == 3

    def test_draining_retires_every_connection(self) -> None:
        """Idle ones are returned; others, also opening ones, are refused later."""
        ledger = make_ledger()
        idle, _ = add(ledger, "a"), add(ledger, "b")
        leased, opening = lend(ledger), ledger.reserve(0.0)
        assert ledger.drain() == [idle]
        assert not take_back(ledger, leased, 1.0)
        assert opening.expires_at == RETIRED

    def test_a_drain_of_older_connections_keeps_younger_ones(self) -> None:
        """A connection opened at that very instant is retired too."""
        ledger = make_ledger()
        older, younger = add(ledger, "a", 1.0), add(ledger, "b", 1.5)
        assert ledger.drain(1.0) == [older]
        assert (older.expires_at, younger.expires_at) == (RETIRED, math.inf)

    def test_a_connection_opened_after_a_drain_stays(self) -> None:
        """A drain affects the connections of that moment."""
        ledger = make_ledger()
        ledger.drain()
        add(ledger, "a")
        assert lend(ledger)


class TestDue:
    def test_the_surplus_is_what_was_idle_for_max_idle_above_min_size(self) -> None:
        """All of it is due at once, oldest first, down to exactly `min_size`."""
        ledger = make_ledger(2, 6, max_idle=10.0)
        entries = [add(ledger, name, float(at)) for at, name in enumerate("abcdef")]
        assert ledger.surplus(9.9) == []
        assert ledger.surplus(11.0) == entries[:2]
        assert ledger.surplus(99.0) == entries[:4]

    def test_leased_connections_count_towards_min_size(self) -> None:
        """With a `min_size` of two, two leased and one idle are one too many."""
        ledger = make_ledger(2, 6, max_idle=10.0)
        for name in "abc":
            add(ledger, name)
        lend(ledger)
        lend(ledger)
        assert ledger.surplus(10.0) == ledger.idle

    def test_closing_connections_do_not_count_towards_min_size(self) -> None:
        """Otherwise the next round would close one too many."""
        ledger = make_ledger(2, 6, max_idle=10.0)
        entries = [add(ledger, name) for name in "abc"]
        ledger.withdraw(entries[0], State.CLOSING)
        assert ledger.surplus(10.0) == []

    def test_idle_connections_expire_too(self) -> None:
        """A connection expires at its instant, not after it."""
        ledger = make_ledger()
        entry = add(ledger, "a", 0.0, expires_at=10.0)
        add(ledger, "b", 0.0, expires_at=11.0)
        assert ledger.expired(9.9) == []
        assert ledger.expired(10.0) == [entry]

    def test_in_an_outage_no_connection_is_closed_for_its_age(self) -> None:
        """This holds for idleness and lifetime; a retired connection is closed anyway."""
        ledger = make_ledger(max_idle=10.0)
        old, doomed = add(ledger, "a", expires_at=10.0), add(ledger, "b")
        doomed.retire()
        ledger.keep_expired = True
        assert ledger.surplus(20.0) == []
        assert ledger.expired(20.0) == [doomed]
        ledger.keep_expired = False
        assert ledger.expired(20.0) == [old, doomed]

    def test_a_long_lease_is_overdue_until_it_is_reported(self) -> None:
        """The lease is overdue from its instant on; a shared lease never is."""
        ledger = make_ledger(leak_timeout=10.0)
        add(ledger, "a")
        entry = lend(ledger)
        assert ledger.overdue(9.9) == []
        assert ledger.overdue(10.0) == [entry]
        entry.lease.annotate().is_reported = True
        assert ledger.overdue(10.0) == []
        entry.lease = SharedLease.new()
        assert ledger.overdue(10.0) == []

    def test_a_connection_being_replaced_is_not_returned_again(self) -> None:
        """One replacement is opened."""
        ledger = make_ledger()
        entry = add(ledger, "a", 0.0, expires_at=10.0)
        ledger.reserve(10.0).predecessor = entry
        assert ledger.expired(10.0) == []

    def test_only_connections_quiet_for_ping_interval_are_pinged(self) -> None:
        """Both a use and a ping count."""
        ledger = make_ledger(ping_interval=10.0)
        silent, used, pinged = add(ledger, "a"), add(ledger, "b"), add(ledger, "c")
        used.used_at = pinged.healthy_at = 5.0
        assert ledger.ping_due(9.9) == []
        assert ledger.ping_due(10.0) == [silent]
        assert ledger.ping_due(15.0) == [silent, used, pinged]

    def test_nothing_becomes_due_before_next_due(self) -> None:
        """The instant is the earliest end of a lifetime, of `max_idle` or of `ping_interval`."""
        numbers = {"max_idle": 30.0, "ping_interval": 20.0, "max_lifetime": 100.0}
        ledger = make_ledger(1, 4, **numbers)
        assert next_due(ledger, 0.0) == 20.0
        add(ledger, "a", 5.0)
        assert next_due(ledger, 5.0) == 25.0
        add(ledger, "b", 6.0, expires_at=7.0)
        assert next_due(ledger, 6.0) == 7.0

    def test_a_use_or_ping_delays_the_next_ping(self) -> None:
        """A ping is due `ping_interval` after the last one, whenever the ledger is asked."""
        ledger = make_ledger(ping_interval=20.0)
        entry = add(ledger, "a", 5.0)
        assert next_due(ledger, 15.0) == 25.0
        entry.healthy_at = 14.0
        assert next_due(ledger, 15.0) == 34.0

    def test_only_surplus_connections_reach_max_idle(self) -> None:
        """In an outage there is no surplus."""
        ledger = make_ledger(1, 4, max_idle=10.0)
        add(ledger, "a")
        assert next_due(ledger, 5.0) == 15.0
        add(ledger, "b")
        assert next_due(ledger, 5.0) == 10.0
        ledger.keep_expired = True
        assert next_due(ledger, 5.0) == 15.0

    def test_a_new_connection_does_not_become_due_before_next_due(self) -> None:
        """A new connection lives for at least 95 % of `max_lifetime`."""
        ledger = make_ledger(max_lifetime=10.0)
        assert next_due(ledger, 0.0) == 9.5

    def test_the_expiry_of_a_leased_connection_is_planned(self) -> None:
        """The connection may be idle by then."""
        ledger = make_ledger()
        add(ledger, "a", 0.0, expires_at=10.0)
        lend(ledger)
        assert next_due(ledger, 0.0) == 10.0

    def test_an_expired_leased_connection_needs_no_round(self) -> None:
        """The connection is refused at its release; nothing can be done before."""
        ledger = make_ledger()
        add(ledger, "a", 0.0, expires_at=10.0)
        lend(ledger)
        assert next_due(ledger, 10.0) > 10.0
        assert next_due(ledger, 11.0) > 11.0
