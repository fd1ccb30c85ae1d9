"""Run the web benchmark: `python -m benchmarks.web`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

if missing := [
    name
    for name in ("httptools", "matplotlib", "rich", "starlette", "typer", "uvicorn", "uvloop")
    if find_spec(name) is None
]:
    sys.exit(f"{', '.join(missing)} not found: pip install --group bench")

from benchmarks.web._cli import app

app()
