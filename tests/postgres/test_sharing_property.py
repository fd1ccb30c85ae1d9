"""Random programs of blocks and one-shots match a model, with and without sharing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests._tools import few

from ._program_runs import run
from ._tools import BOTH_LOOPS, needs_internals
from .sharing import Campaign, excess

if TYPE_CHECKING:
    from ._tools import Backends

pytestmark = needs_internals

LOOPS = BOTH_LOOPS


@pytest.mark.parametrize("pipeline", [True, False], ids=["shared", "borrowed"])
@pytest.mark.parametrize("seed", few(range(16)))
@pytest.mark.exhaustive
async def test_a_random_program_ends_as_its_model_says(
    dsn: str, backends: Backends, seed: int, pipeline: bool
) -> None:
    """Every request ends with a legal outcome, and the tables hold the acknowledged work."""
    verdict = await run(dsn, backends, seed, pipeline=pipeline)
    assert not verdict.faults, "\n".join(verdict.faults)


async def test_the_campaign_measures_each_request_both_ways(asyncpool_dsn: str) -> None:
    """`python -m tests.postgres.sharing` repeats for hours what this test runs once."""
    running = Campaign(asyncpool_dsn)
    await running.both(0)
    figures = running.figures
    assert not figures.faults, "\n".join(figures.faults)
    assert figures.programs == 1
    assert len(figures.seconds[True]) == len(figures.seconds[False]) > 0
    assert figures.lines()[0].startswith("1 programs, 0 faults")


def test_what_takes_longer_with_sharing_is_found_by_its_place() -> None:
    """Requests that only one of the runs has are not compared."""
    shared, borrowed = {"0.0": 1.0, "0.1": 0.5, "0.2": 9.0}, {"0.0": 0.5, "0.1": 0.4, "0.3": 0.0}
    assert excess(shared, borrowed) == {"0.0": 0.5}
