"""Random programs of blocks and one-shots end as the model says, with and without sharing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ._program_runs import run
from ._tools import BOTH_LOOPS

if TYPE_CHECKING:
    from ._tools import Backends

LOOPS = BOTH_LOOPS


@pytest.mark.parametrize("pipeline", [True, False], ids=["shared", "borrowed"])
@pytest.mark.parametrize("seed", range(16))
async def test_a_random_program_ends_as_its_model_says(
    dsn: str, backends: Backends, seed: int, pipeline: bool
) -> None:
    """Every request ends, with a legal outcome, and the tables hold what was acknowledged."""
    verdict = await run(dsn, backends, seed, pipeline=pipeline)
    assert not verdict.faults, "\n".join(verdict.faults)
