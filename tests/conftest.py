"""What all tests share."""

from __future__ import annotations

import os
import signal

import pytest

pytest_plugins = ["pytester"]

TREES = {"tests", "tests/postgres"}
"""What is large enough for two processes."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for all tests, which wait for their servers half of the time; none for a few.

    More would make the tests about time less sure than they are worth.
    """
    whole = all(arg.rstrip("/") in TREES for arg in config.args)
    picked = config.option.keyword or config.option.markexpr
    return min(2, os.cpu_count() or 1) if whole and not picked else 0


def pytest_configure() -> None:
    """Let programs that tests start be interrupted: a shell's background job ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
