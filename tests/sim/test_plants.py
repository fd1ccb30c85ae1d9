"""That the simulator finds bugs: each is planted, and must be caught by the law that it breaks."""

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

RARE: dict[Plant, int] = {plants.share_the_crew: 780}
"""Where to begin with one that some hundred seeds do not notice, so that it is found soon."""


def first_broken(seeds: Iterable[int]) -> str:
    """What the first seed that breaks a law has to say; nothing when none does."""
    return next((said for seed in seeds if (said := outcome_of(seed))), "")


@pytest.mark.parametrize(
    ("plant", "symptom"),
    [
        (plants.forget_the_notice, "late|TimeoutError|come to rest|in the line|ever happen"),
        (plants.notify_whoever_comes_first, "late|TimeoutError|come to rest"),
        (plants.keep_what_was_handed_over, "leases leaked|do not add up|have come"),
        (plants.forget_a_check_under_way, "not all at rest"),
        (plants.never_check_again, "leases leaked|late|do not add up|have come"),
        (plants.strike_off_before_closing, r"sockets for \d+ entries"),
        (plants.open_for_everybody, r"entries, \d+ allowed|there are \d+ entries"),
        (plants.serve_the_last, "a waiter was overtaken|the line is miscounted"),
        (plants.send_back_to_the_end, "a waiter was overtaken|the line is miscounted"),
        (plants.stack_beside_the_line, "beside an idle connection"),
        (plants.forget_the_retry_timer, "timers after close"),
        (plants.forget_the_lines_timer, "timers after close"),
        (plants.keep_the_first_timer, "s late"),
        (plants.count_departures_twice, "the line is miscounted"),
        (plants.count_a_failed_connect_as_opening, "opening is miscounted"),
        (plants.let_borrowers_clean, "was reset while it was lent|is idle twice|differ"),
        (plants.ignore_losses, "not all at rest|do not add up|Broken"),
        (plants.forget_who_was_lost, "known to be lost|within 0 s"),
        (
            plants.take_what_was_handed_over_first,
            "has two owners|has not leased|have come|a counter went back|saw KeyError",
        ),
        (plants.swallow_the_first_cancellation, "a cancelled request|have come"),
        (plants.let_a_scope_end_the_close, "after close"),
        (plants.clean_up_with_an_await, "have come|leases leaked|leases booked"),
        (plants.share_the_crew, "close|keeper"),
        (plants.forget_who_waits_elsewhere, "overtaken by another|idle connection has"),
        (plants.forget_who_waits_for_room, "waits beside room"),
        (plants.open_without_counting, r"there are \d+ entries"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_bug_is_caught(
    plant: Plant, symptom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 800 seeds, by the law that it breaks; the report has the seed and the command."""
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
    """Else there would be no need for the other orders."""
    plants.take_what_was_handed_over_first(monkeypatch)
    # The plant itself keeps connections, which nobody could take back.
    monkeypatch.setitem(world_module.EVENTS, "forgetful", 0)
    seed = int(first_broken(range(200)).split()[1].rstrip(","))
    monkeypatch.setattr(world_module, "ORDERS", [Order()])
    assert not first_broken(range(seed + 100))


def test_a_broken_law_is_raised_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """For who runs the seed again."""
    plants.serve_the_last(monkeypatch)
    seed = int(first_broken(range(200)).split()[1].rstrip(","))
    with pytest.raises(LawBroken, match=f"^seed {seed}, "):
        World(seed).run()
