"""The simulator in every test run: many seeds, all events, and repeatable runs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tests._tools import few
from tests.sim.world import World, outcome_of, trace_of

CHUNK = 50


@pytest.mark.parametrize("start", few(range(0, 600, CHUNK)))
def test_no_law_is_broken_in_any_schedule(start: int) -> None:
    """Users, faults and cancellations are random; a failure names its seed and the command."""
    broken = [said for seed in range(start, start + CHUNK) if (said := outcome_of(seed))]
    assert not broken, "\n".join(broken)


@pytest.mark.exhaustive
def test_the_seeds_cover_what_can_happen() -> None:
    """A simulation in which nothing happens would break no law."""
    happened: Counter[str] = Counter()
    for seed in range(1000, 1100):
        world = World(seed)
        world.run()
        happened.update(world.outcomes)
        happened["several pools"] += len(world.pools) > 1
        happened["another order"] += world.order.shuffle
        happened["held up"] += world.held_up > 0
        happened["eager"] += world.eager
        happened["nothing kept"] += any(not laws.core.settings.keeps_idle for laws in world.pools)
        for laws in world.pools:
            counters = laws.core.runtime.counters
            happened["queued"] += counters.requests_queued
            happened["lost"] += counters.lost
            happened["returned broken"] += counters.returns_bad
            happened["connects failed"] += counters.connects_failed
            happened["leaks"] += counters.leaks
    expected = {"served", "cancelled", "PoolTimeout", "PoolClosed", "TooManyRequests"}
    expected |= {"PoolUnavailable", "PoolDeadlock", "leaks"}
    expected |= {"queued", "lost", "returned broken", "connects failed"}
    expected |= {"several pools", "another order", "held up", "eager", "nothing kept"}
    assert {what for what, number in happened.items() if number} >= expected


@pytest.mark.parametrize("start", few(range(3000, 3020, 5)))
def test_the_same_seed_gives_the_same_run_in_another_process(start: int) -> None:
    """Otherwise a failure could not be repeated."""
    seeds = range(start, start + 5)
    code = f"from tests.sim.world import trace_of\nfor s in {seeds}: print(trace_of(s))"
    again = subprocess.run(
        [sys.executable, "-c", f"import logging; logging.disable(40)\n{code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert again.stdout.splitlines() == [trace_of(seed) for seed in seeds]


def test_different_seeds_give_different_runs() -> None:
    """Otherwise many seeds would be one."""
    assert len({trace_of(seed) for seed in range(10)}) > 8
