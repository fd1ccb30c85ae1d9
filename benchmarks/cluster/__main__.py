"""Run the cluster benchmark: `python -m benchmarks.cluster`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

if missing := [name for name in ("rich", "typer") if find_spec(name) is None]:
    sys.exit(f"{' and '.join(missing)} not found: pip install --group bench")

from benchmarks.cluster._cli import app

app()
