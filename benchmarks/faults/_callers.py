"""Callers that leave in the middle: cancelled in two ways, or clients that hang up."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from benchmarks.faults._scene import Scene
from benchmarks.faults._stage import NotHere, Stage

LIMIT = 10.0
RATE = 40.0
"""A second, half of what fits when each has its connection for a twentieth of one."""


async def _storm(stage: Stage, kind: str) -> None:
    await stage.begin(limit=LIMIT)
    await stage.say("storm", kind=kind, seconds=1 if stage.quick else 3, rate=RATE)
    await stage.over()


async def _hang_ups(stage: Stage) -> None:
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        msg = f"{' and '.join(missing)} not found: pip install --group bench"
        raise NotHere(msg)
    await stage.begin(limit=LIMIT, web=True)
    await stage.say("storm", kind="", seconds=1 if stage.quick else 3, rate=RATE)
    await stage.over()


SCENES = (
    Scene("cancel-asyncio", "cancellations, by tasks", partial(_storm, kind="asyncio")),
    Scene("cancel-anyio", "cancellations, by anyio's scopes", partial(_storm, kind="anyio")),
    Scene("hang-ups", "HTTP clients that hang up (Starlette)", _hang_ups),
)
