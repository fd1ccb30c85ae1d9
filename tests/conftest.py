"""Options and ordering of all tests."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]

TREES = {"tests", "tests/postgres"}
"""What is large enough for several processes."""
LONG = ["test_faults", "test_soak", "test_benchmarks", "test_web_benchmark", "test_plants"]
LONG += ["test_sharing_property", "test_tracing", "test_cancelled_steps"]
LONG += ["test_sharing_limits", "test_sharing_waits", "test_descriptors", "test_server"]
LONG += ["test_rollback_fixture", "test_sim", "test_notice", "test_silence", "test_leaks"]
LONG += ["test_demo", "test_sharing_ledger", "test_errors", "test_ping", "test_interrupted"]
LONG += ["test_cut_short", "test_sizing", "test_loops", "test_callbacks", "test_sharing"]
LONG += ["test_lost_work", "test_release", "test_doctor", "test_gates", "test_forgotten_close"]
LONG += ["test_examples", "test_top", "test_starlette", "test_sharing_faults", "test_sqlalchemy"]
"""The files that take longest, in that order."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for all tests, which wait for their servers half of the time; none for a few.

    More would make the tests about time less sure than they are worth.
    """
    whole = all(arg.rstrip("/") in TREES for arg in config.args)
    return min(3, (os.cpu_count() or 1) + 1) if whole and not config.option.keyword else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one when the others are through."""
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    """Leave what the tests import and pytest collects out of each later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _level_of_the_root_logger() -> Iterator[None]:
    """A test that sets it, as a web framework may, would change what later tests capture."""
    level = logging.root.level
    yield
    now = logging.root.level
    logging.root.setLevel(level)
    assert now == level, f"this test leaves the root logger at level {now}, not at {level}"


def pytest_configure() -> None:
    """Let programs that tests start be interrupted: a shell's background job ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
