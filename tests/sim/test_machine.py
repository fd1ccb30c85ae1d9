"""Hypothesis on the core, a proof that it finds bugs, and scripts that once broke a law."""

from __future__ import annotations

import pytest

from tests.sim import plants
from tests.sim.machine import Machine, search_for
from tests.sim.plants import Plant


@pytest.mark.exhaustive
def test_no_script_breaks_a_law() -> None:
    """The scripts are the same each time; `python -m tests.sim --hypothesis N` tries others."""
    search_for(150, derandomize=True)


@pytest.mark.planted
@pytest.mark.parametrize(
    "plant",
    [
        plants.keep_what_was_handed_over,
        plants.serve_the_last,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_found_and_shrunk_to_a_short_script(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script has at most eight steps; the shrinking depends on a hash of `Machine`."""
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        search_for(1_200, derandomize=True, steps=15)
    assert len(Machine.script) <= 8, Machine.script
    assert Machine.script[0].startswith("open(")


def test_a_hand_over_that_ends_in_another_wait_is_one_request() -> None:
    """The request was once counted as queued twice."""
    machine = Machine()
    machine.open(0, 0, False)
    machine.request(None, 1)
    machine.answer_all()
    machine.request(None, 1)
    machine.lose(0)
    machine.release(0, True, "")
    machine.check_laws()
    machine.answer_all()
    machine.check_laws()
    machine.teardown()


def test_a_request_that_timed_out_is_counted_before_its_task_runs() -> None:
    """The request was once missing in all numbers until its task ran."""
    machine = Machine()
    machine.open(0, 0, False)
    machine.request(2.0, 3)
    machine.wait(3.0)
    machine.check_laws()
    machine.teardown()
