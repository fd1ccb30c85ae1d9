"""The simulator finds bugs: each plant must be caught by the law that it breaks."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from tests.sim import plants
from tests.sim import world as world_module
from tests.sim.laws import LawBroken
from tests.sim.plants import Plant
from tests.sim.schedule import Order
from tests.sim.world import World, outcome_of

pytestmark = pytest.mark.planted

RARE: dict[Plant, int] = {plants.share_the_background_tasks: 780}
"""First seed for plants that a few hundred seeds do not find, so that they are found soon."""


def first_broken(seeds: Iterable[int]) -> str:
    """Return the message of the first seed that breaks a law, or an empty string."""
    return next((said for seed in seeds if (said := outcome_of(seed))), "")


@pytest.mark.parametrize(
    ("plant", "symptom"),
    [
        (plants.drop_the_notification, "late|TimeoutError|come to rest|in the queue|ever happen"),
        (plants.notify_whoever_comes_first, "late|TimeoutError|come to rest"),
        (plants.keep_what_was_handed_over, "leases leaked|do not add up|have arrived"),
        (plants.forget_a_check_under_way, "not all at rest"),
        (plants.leave_what_a_struck_task_had, "not all at rest|come to rest|nothing is opened"),
        (
            plants.keep_the_lease_of_a_cancelled_check,
            "leases leaked|late|do not add up|have arrived",
        ),
        (plants.remove_before_closing, r"sockets for \d+ entries"),
        (plants.open_for_everybody, r"entries, \d+ allowed|there are \d+ entries"),
        (plants.serve_the_last, "was overtaken|the queue is miscounted|have arrived"),
        (plants.keep_the_turn, "lost its turn"),
        (plants.forget_priorities, "a lower priority was first"),
        (plants.refuse_the_last, "the last waiter was refused"),
        (plants.forget_a_flow, "late|TimeoutError|come to rest|is miscounted|were served"),
        (plants.send_back_to_the_end, "a waiter was overtaken|the queue is miscounted"),
        (plants.make_idle_beside_waiters, "beside an idle connection"),
        (plants.forget_the_retry_timer, "timers after close|nothing is opened"),
        (plants.forget_the_queues_timer, "timers after close"),
        (plants.keep_the_first_timer, "s late"),
        (plants.subtract_served_waiters_twice, "the queue is miscounted"),
        (plants.count_a_failed_connect_as_opening, "opening is miscounted"),
        (
            plants.let_borrowers_clean,
            "was reset while it was leased|is idle twice|differ|reset' failed: Broken",
        ),
        (plants.ignore_losses, "not all at rest|do not add up|Broken"),
        (plants.ignore_reported_losses, "known to be lost|within 0 s"),
        (
            plants.take_what_was_handed_over_first,
            "has two owners|has not leased|have arrived|a counter decreased|saw KeyError",
        ),
        (plants.swallow_the_first_cancellation, "a cancelled request|have arrived"),
        (plants.revive_a_removed_entry, "KeyError"),
        (plants.let_a_scope_end_the_close, "after close"),
        (plants.clean_up_with_an_await, "have arrived|leases leaked|leases counted"),
        (plants.share_the_background_tasks, "close|maintenance"),
        (plants.ignore_waiters_of_other_pools, "overtaken by another|idle connection uses"),
        (plants.offer_no_room, "waits although there is room"),
        (plants.forget_who_waits_for_a_connect, "nothing is opened|although there is room"),
        (plants.open_without_counting, r"there are \d+ entries"),
        (plants.fill_after_an_outage, r"more than \d+ connects at once"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_bug_is_caught(
    plant: Plant, symptom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug is found within 800 seeds; the report has the seed and the command."""
    plant(monkeypatch)
    start = RARE.get(plant, 0)
    said = first_broken(range(start, start + 800))
    assert re.search(symptom, said), said or "nobody noticed"
    seed = re.match(r"seed (\d+), t=", said)
    assert seed is not None
    assert f"python -m tests.sim {seed[1]}" in said


def test_a_bug_that_asyncios_own_order_hides_is_found_in_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without such a bug, the other orders would not be needed."""
    plants.take_what_was_handed_over_first(monkeypatch)
    # The plant itself keeps connections, so they cannot be reclaimed.
    monkeypatch.setitem(world_module.EVENTS, "forgetful", 0)
    seed = int(first_broken(range(200)).split()[1].rstrip(","))
    monkeypatch.setattr(world_module, "ORDERS", [Order()])
    assert not first_broken(range(seed + 100))


def test_a_broken_law_is_raised_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who runs the seed again needs it."""
    plants.serve_the_last(monkeypatch)
    seed = int(first_broken(range(200)).split()[1].rstrip(","))
    with pytest.raises(LawBroken, match=f"^seed {seed}, "):
        World(seed).run()
