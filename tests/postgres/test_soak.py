"""A short share of the soak; `python -m tests.postgres.soak` is the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
