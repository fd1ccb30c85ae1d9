"""Run the fault benchmark: `python -m benchmarks.faults`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

if missing := [name for name in ("rich", "typer") if find_spec(name) is None]:
    sys.exit(f"{' and '.join(missing)} not found: pip install --group bench")
if os.name != "posix":
    sys.exit("starting PostgreSQL servers needs Linux or macOS")

from benchmarks.faults._cli import app

app()
