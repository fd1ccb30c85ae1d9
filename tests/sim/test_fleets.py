"""Fleets of a hundred processes on the rule alone: they settle, and never exceed the places."""

from __future__ import annotations

import pytest

from tests._tools import few
from tests.sim.fleets import Process, World

SEEDS = few(range(8))


def start_all(world: World, number: int, demand: int = 10) -> list[Process]:
    """Start members one after another within two seconds, and let them settle."""
    found = []
    for _ in range(number):
        found.append(world.start(demand))
        world.run(2.0 / number)
    world.run(6.0)
    return found


def require_places(world: World, *others: Process) -> None:
    """No growth was refused by the server, and none went into the reserve."""
    assert not world.reserve_used
    assert world.most_used <= world.places
    assert not sum(each.refused for each in (*world.members.values(), *others))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hundred_busy_processes_get_equal_parts(seed: int) -> None:
    """Jain's index is at least 0.95; all places but the reserve are used."""
    world = World(400, seed)
    start_all(world, 100)
    assert world.jain() >= 0.95
    assert world.used == 397
    require_places(world)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.exhaustive
def test_a_settled_fleet_does_not_swing(seed: int) -> None:
    """While no demand changes, nobody opens or closes a connection."""
    world = World(400, seed)
    start_all(world, 100)
    before = world.changes
    world.run(20.0)
    assert world.changes == before
    require_places(world)


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_newcomers_are_served_within_two_seconds(seed: int, busy: bool) -> None:
    """Also where the others have all places, and more come at a time than the reserve has."""
    world = World(300, seed)
    old = start_all(world, 50)
    if not busy:
        for each in old:
            each.demand = 0
        world.run(3.0)
    new = [world.start(10) for _ in range(6)]
    world.run(8.0)
    waits = [(each.served_at or world.now) - each.started_at for each in new]
    assert max(waits) <= 2.0
    assert min(each.size for each in new) >= (5 if busy else 10)
    require_places(world, *old)


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_are_by_weight(seed: int) -> None:
    """Who counts three times gets three times as much."""
    world = World(203, seed)
    light = [world.start(100, max_size=100) for _ in range(20)]
    heavy = [world.start(100, max_size=100, weight=3.0) for _ in range(10)]
    world.run(8.0)
    assert {each.size for each in light} == {4}
    assert {each.size for each in heavy} == {12}
    require_places(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_some_do_not_need_the_others_have(seed: int) -> None:
    """It is lent within two seconds of its need, and comes back as fast."""
    world = World(103, seed)
    idle = [world.start(2, max_size=50) for _ in range(10)]
    busy = [world.start(50, max_size=50) for _ in range(2)]
    world.run(8.0)
    assert [each.size for each in busy] == [40, 40]
    for each in idle[:5]:
        each.demand = 10
    world.run(3.0)
    assert min(each.size for each in idle[:5]) >= 8
    require_places(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_places_that_change_are_kept_to(seed: int) -> None:
    """With fewer, the fleet shrinks as connections are returned; with more, it grows again."""
    world = World(400, seed)
    processes = start_all(world, 50)
    world.places = 200
    world.run(4.0)
    assert world.used <= 197
    assert world.jain() >= 0.95
    world.places = world.most_used = 350
    world.run(4.0)
    assert world.used == 347
    assert not sum(each.refused for each in processes)


@pytest.mark.parametrize("seed", SEEDS)
def test_places_are_found_while_every_connection_is_in_use_for_long(seed: int) -> None:
    """Nobody returns a connection on which to look, so claims end and one more is opened."""
    world = World(43, seed)
    processes = [world.start(10, hold=1000.0) for _ in range(4)]
    world.run(8.0)
    assert world.used == 40
    for each in processes[:2]:
        world.end(each)
    processes[2].demand = processes[3].demand = processes[2].max_size = processes[3].max_size = 20
    world.run(8.0)
    assert [each.size for each in processes[2:]] == [20, 20]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_paused_process_holds_what_it_has_and_no_more(seed: int) -> None:
    """The others share the rest; when it goes on, it claims nothing that they have taken."""
    world = World(203, seed)
    processes = start_all(world, 20)
    suspended = processes[:5]
    for each in suspended:
        each.paused = True
    for each in processes[5:10]:
        each.demand = 2
    world.run(8.0)
    assert world.used == 200
    for each in suspended:
        each.paused, each.demand = False, 10
    world.run(5.0)
    require_places(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fleet_exceeds_the_places_whatever_happens(seed: int) -> None:
    """Members start, end, pause, look slowly and change what they need, at random."""
    world = World(250, seed)
    gone: list[Process] = []
    start_all(world, 60, 4)
    for _ in range(150):
        world.run(world.random.uniform(0.0, 0.3))
        each = world.random.choice(list(world.members.values()))
        chance = world.random.random()
        if chance < 0.1 and len(world.members) > 40:
            world.end(each)
            gone.append(each)
        elif chance < 0.25 and len(world.members) < 110:
            world.start(world.random.randrange(11))
        elif chance < 0.35:
            each.paused = not each.paused
        elif chance < 0.45:
            each.slow = not each.slow
        elif chance < 0.6:
            world.reap(each)
        else:
            each.demand = world.random.randrange(11)
    require_places(world, *gone)
    for each in world.members.values():
        each.paused, each.slow, each.demand = False, False, 10
    world.run(18.0)
    assert world.jain() >= 0.95
    require_places(world, *gone)
