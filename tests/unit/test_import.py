"""The modules that `import asyncpool` imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import asyncpool

IMPORTED = """
import psycopg, sys
before = set(sys.modules)
import asyncpool
print(*set(sys.modules) - before)
"""
OUTSIDE = {"anyio", "sniffio", "idna", "exceptiongroup", "typing_extensions"}
"""Packages from outside: anyio and what it needs."""
LATER = {"anyio.abc", "anyio.lowlevel", "difflib", "platform", "uuid"}
"""Modules that anyio's backend needs, or an error."""
ANNEXES = {"cli", "inspector", "integrations", "metrics", "testing"}


def test_the_import_needs_nothing_but_psycopg_and_anyio() -> None:
    """Annexes, and the libraries that they are for, are imported by those who use them."""
    given = modules_that(IMPORTED)
    assert not {name for name in given if name.split(".")[1:2] and name.split(".")[1] in ANNEXES}
    others = {name.partition(".")[0] for name in given} - sys.stdlib_module_names
    assert others - OUTSIDE == {"asyncpool"}


def test_the_import_leaves_out_what_takes_long() -> None:
    """Each of these takes a millisecond or more, anyio's backend twenty."""
    given = modules_that(IMPORTED)
    assert not given & LATER
    assert not {name for name in given if name.startswith(("anyio._backends", "anyio.streams"))}


def test_the_first_use_of_anyio_imports_nothing() -> None:
    """A pool that opens would hold up the event loop: anyio's backend comes with the first pool."""
    for make in ("AsyncConnectionPool('', open=False)", "PoolManager(max_connections=1)"):
        code = f"import anyio, asyncio, asyncpool, sys; kept = asyncpool.{make}\n"
        code += "before = set(sys.modules); asyncio.run(anyio.sleep(0))\n"
        code += "print(*(each for each in set(sys.modules) - before if 'anyio' in each))"
        assert modules_that(code) == set()


def test_a_cluster_and_a_fleet_are_imported_at_their_first_use() -> None:
    """They need a fifth of the modules, and a program with one server and process needs neither."""
    given = modules_that(IMPORTED)
    later = ("asyncpool._cluster", "asyncpool.cluster", "asyncpool._fleet", "asyncpool.fleet")
    assert not {name for name in given if name.startswith((*later, "hmac", "secrets"))}
    for name, module in (("Cluster", "cluster"), ("FleetStats", "fleet"), ("fleet.Fleet", "fleet")):
        assert f"asyncpool.{module}" in modules_that(
            f"import sys, asyncpool; asyncpool.{name}; print(*sys.modules)"
        )


def test_the_package_has_each_public_name_and_no_other() -> None:
    """Names that are imported later are listed and starred like the rest."""
    assert dir(asyncpool) == sorted([*asyncpool.__all__, "__version__"])
    for name in asyncpool.__all__:
        assert getattr(asyncpool, name).__name__ == name
    with pytest.raises(AttributeError, match="'asyncpool' has no attribute 'Clutser'"):
        getattr(asyncpool, "Clutser")  # noqa: B009


def modules_that(code: str) -> set[str]:
    """Return the modules that a program prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())
