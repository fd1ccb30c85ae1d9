"""Fixtures of the simulator's tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Disable the log; so many worlds would fill it."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)
