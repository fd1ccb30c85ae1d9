"""The modules that `import asyncpool` imports."""

from __future__ import annotations

import subprocess
import sys

IMPORTED = """
import psycopg, sys
before = set(sys.modules)
import asyncpool
print(*set(sys.modules) - before)
"""
OUTSIDE = {"anyio", "sniffio", "idna", "exceptiongroup", "typing_extensions"}
"""Packages from outside: anyio and what it needs."""
ANNEXES = {"cli", "inspector", "integrations", "metrics", "testing"}


def test_the_import_needs_nothing_but_psycopg_and_anyio() -> None:
    """Annexes, and the libraries that they are for, are imported by those who use them."""
    given = subprocess.run(
        [sys.executable, "-c", IMPORTED], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {name for name in given if name.split(".")[1:2] and name.split(".")[1] in ANNEXES}
    others = {name.partition(".")[0] for name in given} - sys.stdlib_module_names
    assert others - OUTSIDE == {"asyncpool"}


def test_the_first_use_of_anyio_imports_nothing() -> None:
    """A pool that opens would hold up the event loop meanwhile."""
    used = "import anyio, asyncio; asyncio.run(anyio.sleep(0))"
    code = f"import asyncpool, sys; before = set(sys.modules); {used}"
    code += "; print(*(each for each in set(sys.modules) - before if 'anyio' in each))"
    given = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert given.stdout.split() == []
