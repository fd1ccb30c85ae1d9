"""What the simulator's tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nobody reads the log of so many worlds."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)
