"""The simulator in every test run: many seeds, the same twice, and bugs planted to be caught."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from asyncpool._check import Check
from asyncpool._core import Core
from asyncpool._entry import Entry, State
from asyncpool._insight import snapshot
from asyncpool._ledger import Ledger
from asyncpool._stock import Stock
from asyncpool._waiters import Line, Waiter
from tests.sim.fake import FakeConn
from tests.sim.world import LawBroken, World, outcome_of

CHUNK = 50
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nobody reads the log of so many worlds."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def first_broken(seeds: Iterable[int]) -> str:
    """What the first seed that breaks a law has to say; nothing when none does."""
    return next((said for seed in seeds if (said := outcome_of(seed))), "")


@pytest.mark.parametrize("start", range(0, 300, CHUNK))
def test_no_law_is_broken_in_any_schedule(start: int) -> None:
    """Users, faults and cancellations at random; a failure names its seed and the command."""
    broken = [said for seed in range(start, start + CHUNK) if (said := outcome_of(seed))]
    assert not broken, "\n".join(broken)


def test_the_seeds_cover_what_can_happen() -> None:
    """A simulation in which nothing happens would hold to every law."""
    worlds = [World(seed) for seed in range(1000, 1080)]
    happened: dict[str, int] = {}
    for world in worlds:
        world.run()
        counters = world.core.stock.counters
        counted: dict[str, Any] = {
            "cancelled": counters.requests_cancelled,
            "queued": counters.requests_queued,
            "lost": counters.lost,
            "returned broken": counters.returns_bad,
            "connects failed": counters.connects_failed,
            **world.outcomes,
        }
        for what, number in counted.items():
            happened[what] = happened.get(what, 0) + number
    expected = {"cancelled", "queued", "lost", "returned broken", "connects failed", "served"}
    expected |= {"PoolTimeout", "PoolClosed", "TooManyRequests"}
    assert {what for what, number in happened.items() if number} == expected


@pytest.mark.parametrize("seed", [3, 14, 159, 2653])
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    """Or a failure could not be looked at again."""

    def run() -> tuple[object, ...]:
        world = World(seed)
        ended: list[float] = []
        end = world._end

        async def look_at_the_clock() -> None:
            await end()
            ended.append(world.time())

        world._end = look_at_the_clock  # type: ignore[method-assign]
        world.run()
        made = world.connector.made
        return ended, world._turns, made, world.outcomes, snapshot(world.core)

    assert run() == run()


def test_different_seeds_give_different_runs() -> None:
    """Else many seeds would be one."""
    worlds = [World(seed) for seed in range(20)]
    for world in worlds:
        world.run()
    assert len({world._turns for world in worlds}) > 15


# Bugs that somebody might make one day, each in one method.


def forget_the_notice(patch: pytest.MonkeyPatch) -> None:
    """A lost wake-up: the hand-over is written down, and its waiter not told."""
    patch.setattr(Waiter, "notify", lambda _: None)


def notify_whoever_comes_first(patch: pytest.MonkeyPatch) -> None:
    """A lost wake-up: one Condition for the whole line, whose notice may go to another."""

    shared: deque[asyncio.Future[bool]] = deque()

    def wait(self: Waiter[Any]) -> asyncio.Future[bool]:
        shared.append(asyncio.get_running_loop().create_future())
        return shared[-1]

    def notify(_: Waiter[Any]) -> None:
        while shared:
            if not (future := shared.popleft()).done():
                future.set_result(True)
                break

    patch.setattr(Waiter, "wait", wait)
    patch.setattr(Waiter, "notify", notify)


def keep_what_was_handed_over(patch: pytest.MonkeyPatch) -> None:
    """A leak: one who is cancelled in the tick of its hand-over does not pass it on."""

    def leave(self: Core[Any], waiter: Waiter[Entry[Any]]) -> None:
        self.ledger.line.leave(waiter)

    patch.setattr(Core, "_leave", leave)


def forget_a_check_under_way(patch: pytest.MonkeyPatch) -> None:
    """A leak: the connection of one who is cancelled in its check is never put back."""

    async def settle(self: Core[Any], entry: Entry[Any], check: object) -> None:
        """Nothing."""

    patch.setattr(Check, "_settle", settle)


def never_check_again(patch: pytest.MonkeyPatch) -> None:
    """A leak: a lease that ends by cancellation in its check is not ended in the books."""

    async def passes(self: Check[FakeConn], entry: Entry[FakeConn], *_: float) -> bool:
        try:
            await self._check(entry.conn)
        except Exception:  # noqa: BLE001 - any failure of a check
            self._stock.found_lost(entry)
            return False
        return True

    patch.setattr(Check, "passes", passes)


def strike_off_before_closing(patch: pytest.MonkeyPatch) -> None:
    """An overshoot: a connection counts no more while it is being closed."""

    async def close(self: Stock[Any], entry: Entry[Any]) -> None:
        self.strike_off(entry)
        await self.connector.close(entry.conn)

    patch.setattr(Stock, "_close", close)


def open_for_everybody(patch: pytest.MonkeyPatch) -> None:
    """An overshoot: as many are opened as are waited for, whatever max_size says."""

    def wanted(self: Ledger[Any]) -> int:
        return max(0, self.settings.min_size - self.size, self.line.length - self.opening)

    def reserve(self: Ledger[Any], now: float) -> Entry[Any]:
        entry: Entry[Any] = Entry(now)
        self.entries.add(entry)
        self.opening += 1
        return entry

    patch.setattr(Ledger, "wanted", wanted)
    patch.setattr(Ledger, "reserve", reserve)


def serve_the_last(patch: pytest.MonkeyPatch) -> None:
    """A waiter is overtaken: the line is served from its end."""

    def serve(self: Line[Any], item: Any) -> bool:
        while self._places:
            waiter = self._places.pop()
            if waiter.waiting:
                waiter.served = item
                self._end(waiter)
                return True
        return False

    patch.setattr(Line, "serve", serve)


def send_back_to_the_end(patch: pytest.MonkeyPatch) -> None:
    """A waiter is overtaken: one who was served something unfit joins behind the others."""
    join = Core._join

    def join_last(self: Core[Any], *request: Any) -> Any:
        line = self.ledger.line
        before = list(line)
        waiter = join(self, *request)
        if request[-1] and before:
            line._places.remove(waiter)
            line._places.append(waiter)
        return waiter

    patch.setattr(Core, "_join", join_last)


def stack_beside_the_line(patch: pytest.MonkeyPatch) -> None:
    """Idle beside waiters: a connection is put on the stack though somebody waits."""

    def give(self: Ledger[Any], entry: Entry[Any], now: float) -> bool:
        if entry.expires_at <= now or (self.oversize and self._is_too_many()):
            return False
        entry.state = State.IDLE
        self.idle.append(entry)
        self.idle.sort(key=lambda each: each.used_at)
        return True

    patch.setattr(Ledger, "give", give)


def forget_the_retry_timer(patch: pytest.MonkeyPatch) -> None:
    """A forgotten timer: what was to try again later outlives the pool."""
    patch.setattr(Stock, "stop_retrying", lambda self: setattr(self, "_retry", None))


def forget_the_lines_timer(patch: pytest.MonkeyPatch) -> None:
    """A forgotten timer: the line's deadline outlives the pool."""
    patch.setattr(Line, "stop", lambda self: self._deadlines.clear())


def keep_the_first_timer(patch: pytest.MonkeyPatch) -> None:
    """A forgotten deadline: the timer is not set anew for one who has less time."""
    set_timer = Line._set_timer

    def set_once(self: Line[Any], deadline: float) -> None:
        if self._timer is None:
            set_timer(self, deadline)

    patch.setattr(Line, "_set_timer", set_once)


def count_departures_twice(patch: pytest.MonkeyPatch) -> None:
    """A miscount: one who leaves after having been served is subtracted once more."""

    def leave(self: Line[Any], waiter: Waiter[Any]) -> Any:
        waiter.waiting = False
        self.length -= 1
        served, waiter.served = waiter.served, None
        return served

    patch.setattr(Line, "leave", leave)


def count_a_failed_connect_as_opening(patch: pytest.MonkeyPatch) -> None:
    """A miscount: a place whose connect failed goes on counting as being opened."""
    withdraw = Ledger.withdraw

    def forgetful(self: Ledger[Any], entry: Entry[Any], state: State) -> None:
        opening = self.opening
        withdraw(self, entry, state)
        self.opening = opening

    patch.setattr(Ledger, "withdraw", forgetful)


def let_borrowers_clean(patch: pytest.MonkeyPatch) -> None:
    """Unclean: a connection goes on to the next while it is still being reset."""

    async def clean(self: Stock[Any], entry: Entry[Any], first: object) -> None:
        self.put(entry, self.time())
        await asyncio.sleep(0)
        await self.connector.reset(entry.conn)

    patch.setattr(Stock, "clean", clean)


def ignore_losses(patch: pytest.MonkeyPatch) -> None:
    """A leak: what cannot be cleaned is neither put back nor discarded."""

    async def clean(self: Stock[Any], entry: Entry[Any], first: object) -> None:
        await self.connector.reset(entry.conn)
        self.put(entry, self.time())

    patch.setattr(Stock, "clean", clean)


@pytest.mark.parametrize(
    ("plant", "symptom"),
    [
        (forget_the_notice, "late|TimeoutError|come to rest|in the line"),
        (notify_whoever_comes_first, "late|TimeoutError|come to rest"),
        (keep_what_was_handed_over, "leases leaked|do not add up"),
        (forget_a_check_under_way, "not all at rest"),
        (never_check_again, "leases leaked|late|do not add up"),
        (strike_off_before_closing, r"sockets for \d+ entries"),
        (open_for_everybody, r"entries, \d+ allowed"),
        (serve_the_last, "a waiter was overtaken|the line is miscounted"),
        (send_back_to_the_end, "a waiter was overtaken|the line is miscounted"),
        (stack_beside_the_line, "beside an idle connection"),
        (forget_the_retry_timer, "timers after close"),
        (forget_the_lines_timer, "timers after close"),
        (keep_the_first_timer, "s late"),
        (count_departures_twice, "the line is miscounted"),
        (count_a_failed_connect_as_opening, "opening is miscounted"),
        (let_borrowers_clean, "was reset while it was lent|is idle twice|differ"),
        (ignore_losses, "not all at rest|do not add up|Broken"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_bug_is_caught(
    plant: Plant, symptom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 400 seeds, by the law that it breaks; the report has the seed and the command."""
    plant(monkeypatch)
    said = first_broken(range(400))
    assert re.search(symptom, said), said or "nobody noticed"
    seed = re.match(r"seed (\d+), t=", said)
    assert seed is not None
    assert f"python -m tests.sim {seed[1]}" in said


def test_a_broken_law_is_raised_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """For who runs the seed again."""
    serve_the_last(monkeypatch)
    seed = int(first_broken(range(200)).split()[1].rstrip(","))
    with pytest.raises(LawBroken, match=f"^seed {seed}, "):
        World(seed).run()
