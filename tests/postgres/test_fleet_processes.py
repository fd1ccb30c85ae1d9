"""Processes that share a server as a fleet: they start, end, are killed and suspended under load.

The programs are those of `benchmarks.fleet`, each with one pool, on a server with few places.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool.testing import Server, ServerUnavailable, postgres
from benchmarks.fleet._figures import jain
from benchmarks.fleet._peers import OURS
from benchmarks.fleet._processes import MemberProcess
from benchmarks.fleet._rows import KEPT, RESERVED, Action
from benchmarks.fleet._watch import BYSTANDER, ROLE, Watch, role

from ._tools import SOON, eventually

pytestmark = pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX")

PLACES, RESERVE, SIZE = 14, 3, 8
"""The places for an ordinary role, those that the fleet leaves free, and the pools' size."""
OURS_AT_MOST = PLACES - RESERVE
"""The places that the members fill."""
USE = 0.02


class Members:
    """Processes of one fleet, and who looks on."""

    def __init__(self, dsn: str, watch: Watch) -> None:
        self._given = {
            "pool": OURS,
            "dsn": dsn,
            "use": USE,
            "sizes": {"min_size": 1, "max_size": SIZE, "reserve": RESERVE},
        }
        self.watch = watch
        self.all: list[MemberProcess] = []

    async def make(self, number: int, *, busy: bool = True) -> list[MemberProcess]:
        """Start processes; with `busy` they open their pools and ask all the time."""
        made = await asyncio.gather(*(MemberProcess.start(self._given) for _ in range(number)))
        self.all += made
        if busy:
            for member in made:
                member.do(Action.BUSY)
            await eventually(lambda: all(first(each) is not None for each in made))
        return made

    @property
    def sessions(self) -> int:
        """The sessions that the server has of them, as last seen."""
        return self.watch.sessions[-1][1] if self.watch.sessions else 0

    def most(self, since: float = 0.0) -> int:
        """The most sessions since an instant."""
        return max(number for at, number in self.watch.sessions if at >= since)

    async def leave_room(self) -> None:
        """Wait until others have connected some times; the server had a place for each.

        Only while newcomers open their first connections, they may use up the reserve.
        """
        connects, refused = self.watch.connects, self.watch.refused
        await eventually(lambda: self.watch.connects >= connects + 4)
        assert self.watch.refused == refused, "the reserve is for others too"

    async def filled(self, places: int = OURS_AT_MOST, limit: float = 15.0) -> None:
        """Wait until they have so many sessions."""
        await eventually(lambda: self.sessions == places, limit)


def first(member: MemberProcess) -> float | None:
    """Seconds from the opening of its pool to its first answer."""
    return member.lines[-1].first


def errors(member: MemberProcess) -> dict[str, int]:
    return member.lines[-1].errors


async def answers(members: list[MemberProcess], seconds: float = 2.0) -> list[int]:
    """How much each of them gets answered in some time."""
    before = [each.lines[-1].answers for each in members]
    await asyncio.sleep(seconds)
    return [each.lines[-1].answers - known for each, known in zip(members, before, strict=True)]


async def fair(members: list[MemberProcess]) -> bool:
    """Whether all of them get nearly the same."""
    return (jain(await answers(members)) or 0.0) >= 0.95


async def becomes(fact: Callable[[], Any], limit: float = 15.0) -> None:
    """Wait until an asynchronous fact is true."""
    deadline = time.monotonic() + limit
    while not await fact():
        assert time.monotonic() < deadline, f"not so within {limit} s"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server with few places, which a test may restart."""
    settings = {"superuser_reserved_connections": RESERVED}
    try:
        async with postgres(max_connections=PLACES + KEPT, settings=settings) as server:
            yield server
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
async def members(server: Server) -> AsyncIterator[Members]:
    """The processes of a test: afterwards none hangs, and none of their sessions is left."""
    async with role(server.dsn) as dsn:
        members = Members(dsn, Watch(server.dsn, dsn))
        watching = asyncio.create_task(members.watch.run())
        try:
            yield members
            hung = await asyncio.gather(*(each.end() for each in members.all))
            assert not any(hung), "a process did not end"
            await eventually(lambda: members.sessions == 0)
        finally:
            await asyncio.gather(*(each.end() for each in members.all))
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


@pytest.mark.exhaustive
async def test_newcomers_are_served_while_the_others_are_busy(members: Members) -> None:
    """They get their part of a full server, and nobody ever has more than there is."""
    old = await members.make(2)
    await members.filled()
    new = await members.make(2)
    assert max(first(each) or 99.0 for each in new) < SOON
    await becomes(lambda: fair([*old, *new]))
    assert members.most() <= PLACES
    await members.leave_room()
    assert [errors(each) for each in members.all] == [{}] * 4


@pytest.mark.exhaustive
async def test_newcomers_are_served_by_idle_members(members: Members) -> None:
    """Members that have nothing to do give back what they hold."""
    old = await members.make(2)
    await members.filled()
    for member in old:
        member.do(Action.IDLE)
    new = await members.make(2)
    assert max(first(each) or 99.0 for each in new) < SOON
    await becomes(lambda: fair(new))
    assert [errors(each) for each in members.all] == [{}] * 4


@pytest.mark.exhaustive
async def test_one_member_has_all_that_it_may(members: Members) -> None:
    """Alone, it grows to its own size, as without a fleet."""
    await members.make(1)
    await members.filled(SIZE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", [Action.END, Action.KILL])
async def test_the_places_of_those_who_leave_are_used(members: Members, how: Action) -> None:
    """However they leave, the others fill the places, and no request of the others fails."""
    staying, leaving = await members.make(2), await members.make(2)
    await members.filled()
    left_at = time.monotonic()
    for member in leaving:
        member.do(how)
    for member in leaving:
        await asyncio.wait_for(member.end(), 15.0)
    await members.filled(limit=SOON + 5.0)
    await becomes(lambda: fair(staying))
    assert members.most(left_at) <= PLACES
    assert [errors(each) for each in staying] == [{}] * 2


@pytest.mark.exhaustive
async def test_suspended_members_keep_what_they_hold(members: Members) -> None:
    """The others neither wait for them nor take more than is left, and they go on afterwards."""
    awake, asleep = await members.make(2), await members.make(1)
    await members.filled()
    for member in asleep:
        member.do(Action.SUSPEND)
    await asyncio.sleep(7.0)  # longer than a look stays fresh
    assert all(await answers(awake, 1.0))
    assert members.most() <= PLACES
    for member in asleep:
        member.do(Action.RESUME)
    await becomes(lambda: fair([*awake, *asleep]))
    assert [errors(each) for each in members.all] == [{}] * 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("places", [10, 18])
async def test_after_a_restart_the_new_limit_holds(
    server: Server, members: Members, places: int
) -> None:
    """`max_connections` is read again: they have as much as it leaves, and all are served."""
    all_of_them = await members.make(3)
    await members.filled()
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
        await conn.execute(f"ALTER SYSTEM SET max_connections = {places + KEPT}")
    await server.restart()
    restarted_at = time.monotonic()
    await becomes(lambda: fair(all_of_them))
    await members.filled(places - RESERVE)
    assert members.most(restarted_at) <= places


@pytest.mark.exhaustive
async def test_a_rolling_deploy_has_twice_the_members(members: Members) -> None:
    """Old and new ones overlap; requests neither fail nor are refused, and others connect."""
    old = await members.make(3)
    await members.filled()
    new = [member for _ in range(3) for member in await members.make(1)]
    assert max(first(each) or 99.0 for each in new) < SOON
    for member in old:
        member.do(Action.END)
    for member in old:
        assert not await member.end()
    await becomes(lambda: fair(new))
    assert members.most() <= PLACES
    await members.leave_room()
    assert [errors(each) for each in members.all] == [{}] * 6


@pytest.mark.exhaustive
async def test_other_programs_get_the_places_that_they_need(
    server: Server, members: Members
) -> None:
    """They use the reserve, which the members then make anew from what they have."""
    await members.make(3)
    await members.filled()
    wanted, held = 2 * RESERVE, list[psycopg.AsyncConnection]()
    dsn = make_conninfo(server.dsn, user=ROLE, application_name=BYSTANDER)
    try:
        async with asyncio.timeout(15.0):
            while len(held) < wanted:
                await asyncio.sleep(0.5)
                with suppress(psycopg.OperationalError):  # the members are late
                    held.append(await psycopg.AsyncConnection.connect(dsn))
        await members.filled(OURS_AT_MOST - wanted)
    finally:
        for conn in held:
            await conn.close()
    await members.filled()
    assert [errors(each) for each in members.all] == [{}] * 3
