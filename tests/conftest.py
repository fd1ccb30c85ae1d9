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
LONG += ["test_sharing_property", "test_tracing", "test_cancelled_steps", "test_sim"]
LONG += ["test_leaks", "test_server", "test_overload", "test_fleet", "test_fleets", "test_sizing"]
LONG += ["test_own_writes", "test_demo", "test_cluster_reads", "test_riding", "test_cluster_life"]
LONG += ["test_doctor", "test_sharing_ledger", "test_overload_kept", "test_cut_short"]
LONG += ["test_fleet_looks", "test_callbacks", "test_listen_faults", "test_outages"]
LONG += ["test_examples", "test_gates", "test_credentials", "test_request_limits", "test_errors"]
LONG += ["test_admission", "test_cluster_faults", "test_fleet_processes"]
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
