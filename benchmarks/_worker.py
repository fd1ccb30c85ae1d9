"""One event loop's share of a run, in a process of its own: a plan comes in, JSON lines go out."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks._facts import server_version
from benchmarks._plan import Plan, figures
from benchmarks._pools import find
from benchmarks._rounds import Bench


def factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes that event loop.

    Raises:
        ImportError: it is not installed.
    """
    if loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - it is optional

    return uvloop.new_event_loop


async def run(plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    """All rows, one after another."""
    from benchmarks._rows import RUN  # noqa: PLC0415 - asyncpool itself may be the one left out

    makers, notes = find(plan.pools)
    bench = Bench(plan, makers, tell)
    bench.notes += notes
    gc.collect()
    gc.freeze()
    for row in plan.rows:
        await RUN[row](bench)
    return {
        "loop": plan.loop,
        "notes": bench.notes,
        "postgresql": await server_version(plan.dsn),
        "figures": [asdict(figure) for figure in figures(plan) if figure.key in bench.samples],
        "samples": bench.samples,
    }


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """What the process does."""
    plan = Plan(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        make = factory(plan.loop)
    except ImportError as error:
        _say(result={"loop": plan.loop, "notes": [f"{plan.loop} is left out: {error}"]})
        return
    with asyncio.Runner(loop_factory=make) as runner:
        _say(result=runner.run(run(plan, lambda line: _say(progress=line))))


if __name__ == "__main__":
    main()
