"""Options and ordering of all tests."""

from __future__ import annotations

import os
import signal

import pytest

pytest_plugins = ["pytester"]

TREES = {"tests", "tests/postgres"}
"""What is large enough for several processes."""
LONG = ["test_faults", "test_soak", "test_benchmarks", "test_sharing_property", "test_plants"]
LONG += ["test_sharing_limits", "test_sharing_waits", "test_descriptors"]
LONG += ["test_forgotten_close", "test_examples", "test_doctor", "test_demo", "test_top"]
LONG += ["test_rollback_fixture", "test_server", "test_silence", "test_starlette", "test_sizing"]
LONG += ["test_sharing_ledger", "test_sharing_faults", "test_interrupted", "test_sim", "test_leaks"]
LONG += ["test_sqlalchemy", "test_forks", "test_loops", "test_ping", "test_notice"]
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


def pytest_configure() -> None:
    """Let programs that tests start be interrupted: a shell's background job ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
