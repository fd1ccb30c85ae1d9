"""Connects and closes share the turns of the event loop with other tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asyncpool._psycopg import pacing
from asyncpool._psycopg.pacing import LEAVING, MOMENT, SHARE, Paced, turn, turn_to_leave
from tests.unit._tools import now, virtual_time


class Clock:
    """A clock that only moves as a step says."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


class Turns:
    """Counts the turns of the event loop, and the steps in each."""

    def __init__(self) -> None:
        self.number = 0
        self.steps: list[tuple[int, Any]] = []
        self._next()

    def _next(self) -> None:
        self.number += 1
        asyncio.get_running_loop().call_soon(self._next)

    def note(self, who: Any) -> None:
        self.steps.append((self.number, who))

    @property
    def most(self) -> int:
        """The most steps in one turn."""
        numbers = [number for number, _ in self.steps]
        return max(map(numbers.count, numbers))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "perf_counter", clock)
    return clock


@pytest.fixture
async def other() -> AsyncIterator[None]:
    """A work under way that does nothing, so that the next one has to share the turns."""
    end = asyncio.Event()
    waiting = asyncio.create_task(paced(end.wait()))
    await pause()
    yield
    end.set()
    await waiting


async def paced(work: Coroutine[Any, Any, Any]) -> Any:
    """Run work in its turn, as the driver does."""
    try:
        await turn()
    except BaseException:
        work.close()
        raise
    return await Paced(work)


async def steps(
    clock: Clock, turns: Turns, who: Any, seconds: float, wait: Callable[[], Awaitable[Any]]
) -> Any:
    """Do three steps, each of which takes some time."""
    for _ in range(3):
        clock.at += seconds
        turns.note(who)
        await wait()
    return who


async def pause() -> None:
    await asyncio.sleep(0)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(("seconds", "most"), [(1.5 * SHARE, 1), (0.6 * SHARE, 2)])
async def test_a_turn_has_time_for_few_long_steps(clock: Clock, seconds: float, most: int) -> None:
    """A step starts only while the share of the turn is not used up."""
    turns = Turns()
    works = (paced(steps(clock, turns, who, seconds, pause)) for who in range(20))
    assert await asyncio.gather(*works) == list(range(20))
    assert turns.most == most


@pytest.mark.usefixtures("other")
async def test_short_steps_start_in_the_order_in_which_they_came(clock: Clock) -> None:
    """Those that were woken and found no time left keep their places."""
    turns = Turns()
    works = (paced(steps(clock, turns, who, 0.3 * SHARE, pause)) for who in range(20))
    await asyncio.gather(*works)
    assert turns.most == 4
    assert [who for _, who in turns.steps][:20] == list(range(20))
    assert turns.number < 45


async def test_a_single_work_never_waits(clock: Clock) -> None:
    """A pool that opens one connection is as fast as psycopg, however long its steps take."""
    turns = Turns()
    before = turns.number
    await paced(steps(clock, turns, "it", 2 * SHARE, pause))
    assert turns.number == before + 3


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_work_ends_at_once(clock: Clock, times: int) -> None:
    """An exception is thrown into the work without waiting for its turn."""
    turns, ended = Turns(), []

    async def stubborn(who: int) -> None:
        for _ in range(times):
            try:
                await steps(clock, turns, who, 2 * SHARE, pause)
            except asyncio.CancelledError as error:
                ended.append(who)
                last = error
        raise last

    works = [asyncio.create_task(paced(stubborn(0)))]
    others = [
        asyncio.create_task(paced(steps(clock, turns, who, 2 * SHARE, pause))) for who in "ab"
    ]
    await pause()
    await pause()
    for _ in range(times):
        works[0].cancel()
        await pause()
        await pause()
    assert ended == [0] * times
    assert await asyncio.gather(*others) == ["a", "b"]
    assert works[0].cancelled()


async def test_one_that_leaves_the_queue_passes_its_turn_on(clock: Clock) -> None:
    """Also if it is cancelled in the moment in which it is woken."""
    turns = Turns()
    works = [
        asyncio.create_task(paced(steps(clock, turns, who, 2 * SHARE, pause))) for who in range(9)
    ]
    for victim in works[1:-1]:
        await pause()
        victim.cancel()
    assert await works[0] == 0
    async with asyncio.timeout(10.0):
        assert await works[-1] == 8


async def test_a_cancelled_scope_ends_work_that_waits(clock: Clock) -> None:
    """anyio cancels again at each await."""
    turns = Turns()
    others = [
        asyncio.create_task(paced(steps(clock, turns, who, 2 * SHARE, pause))) for who in range(20)
    ]
    await pause()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await paced(steps(clock, turns, "it", 0.0, pause))
    assert scope.cancelled_caught
    assert "it" not in [who for _, who in turns.steps]
    await asyncio.gather(*others)


async def test_work_that_was_awaited_begins_although_it_is_cancelled() -> None:
    """Closing a connection must close it, whatever happens."""
    begun = []

    async def close() -> None:
        begun.append(1)
        await pause()

    async def leave() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await Paced(close())

    task = asyncio.create_task(leave())
    await pause()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert begun == [1]


async def test_an_error_of_the_work_is_raised() -> None:
    """With the frames of the work."""

    async def fail() -> None:
        await pause()
        raise LookupError

    with pytest.raises(LookupError) as caught:
        await Paced(fail())
    assert caught.traceback[-1].name == "fail"


async def test_work_that_is_given_up_is_closed() -> None:
    """As when the event loop of a pool is closed."""
    closed = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(1)

    async def run() -> None:
        await Paced(work())

    running = run()
    running.send(None)
    running.close()
    assert closed == [1]


def test_each_event_loop_has_its_own_share() -> None:
    """Steps that wait on a loop that has stopped do not hold up the next loop."""

    async def use_up() -> None:
        await Paced(asyncio.sleep(0))
        pacing._pace().use(2 * SHARE)
        for _ in range(3):
            asyncio.ensure_future(turn())  # noqa: RUF006 - it is left behind
        await pause()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use_up())
    asyncio.run(asyncio.wait_for(Paced(asyncio.sleep(0)), 10.0))

    async def rest() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others), 10.0)

    loop.run_until_complete(rest())
    loop.close()


@virtual_time
async def test_few_sessions_are_ended_at_the_same_time() -> None:
    """On the server's own machine, its processes that exit would take this one's CPU."""
    ended: list[float] = []

    async def leave() -> None:
        await turn_to_leave()
        ended.append(now())

    await asyncio.gather(*(leave() for _ in range(2 * LEAVING + 1)))
    moments = [round(at / MOMENT) for at in ended]
    assert moments == [0] * LEAVING + [1] * LEAVING + [2]
    await asyncio.sleep(MOMENT)


@virtual_time
async def test_sessions_that_need_not_wait_any_more_hold_up_no_other() -> None:
    """A pool's `close(timeout)` ends the rest at once."""
    waiting = [asyncio.create_task(turn_to_leave()) for _ in range(100 * LEAVING)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    began = now()
    await turn_to_leave()
    assert now() - began <= MOMENT
