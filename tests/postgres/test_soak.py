"""A short share of the soak; `python -m tests.postgres.soak` is the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ._notified import Journal
from .soak import Soak

if TYPE_CHECKING:
    from asyncpool.testing import Server

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("seed", [1])
async def test_nothing_grows_under_mixed_load_and_faults(server: Server, seed: int) -> None:
    """Memory, descriptors, tasks, timers and sessions are as before, and each write is there once.

    A seed that has failed once is added to the list.
    """
    soak = Soak(server, seed)
    await soak.run(lambda phase: phase < 3)
    assert not soak.books.surprises, f"seed {seed}: {soak.books.surprises}"
    assert len(soak.counts) == 3
    assert soak.notified
    assert soak.gaps


@pytest.mark.parametrize(
    ("delivered", "fault"),
    [
        ([1, 2, 3, 5], None),
        ([1, 2, 3, 4, 5], None),
        ([1, None, 5], None),
        ([None, 2, 3, 5], None),
        ([1, 2, None], None),
        ([1, 4, 2, 3, 5], None),
        ([1, 2, 2, 3, 5], "doubled"),
        ([1, 2, 4, 3, 4, 5], "doubled"),
        ([1, 2, None, 2, 3, 5], "doubled"),
        ([1, 3, 2, 5], "out of order"),
        ([1, 2, 5], "missed"),
        ([2, 3, 5], "missed"),
        ([1, 3, None, 5], "missed"),
        ([1, None, 2, 5], "missed"),
    ],
)
def test_the_soak_sees_what_a_listener_must_not_do(
    delivered: list[int | None], fault: str | None
) -> None:
    """Of five that were sent, the fourth was not acknowledged: it may come or not, at any time."""
    journal = Journal("a")
    journal.acknowledged = [1, 2, 3, 5]
    journal.delivered = delivered
    assert [fault] * bool(fault) == [
        word for word in ("doubled", "out of order", "missed") if word in str(journal.faults())
    ]
