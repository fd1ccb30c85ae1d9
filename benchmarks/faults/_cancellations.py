"""Callers that leave in the middle of a statement: cancelled tasks, and clients that hang up."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from benchmarks.faults._fault import Fault
from benchmarks.faults._trial import Trial, Unsupported

LIMIT = 10.0
RATE = 40.0
"""Cancelled requests per second: half of what 4 connections can serve at 0.05 s each."""


async def _cancelled(trial: Trial, kind: str) -> None:
    await trial.start(limit=LIMIT)
    await trial.command("cancel_many", kind=kind, seconds=1 if trial.quick else 3, rate=RATE)
    await trial.finish()


async def _hang_ups(trial: Trial) -> None:
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        msg = f"{' and '.join(missing)} not found: pip install --group bench"
        raise Unsupported(msg)
    await trial.start(limit=LIMIT, web=True)
    await trial.command("cancel_many", kind="", seconds=1 if trial.quick else 3, rate=RATE)
    await trial.finish()


FAULTS = (
    Fault(
        "cancel-asyncio",
        "callers cancelled by `task.cancel()`",
        partial(_cancelled, kind="asyncio"),
    ),
    Fault("cancel-anyio", "callers cancelled by anyio scopes", partial(_cancelled, kind="anyio")),
    Fault("hang-ups", "HTTP clients that hang up (Starlette)", _hang_ups),
)
